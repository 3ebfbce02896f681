// What an event or an item of the snapshot says to a person.

import { agencyName, day, moment, roubles, statusName, words } from "./words.js";

const TONES = {
  processing: "busy", checking: "busy", awaiting_confirmation: "warn", action_required: "warn", approved: "good", rejected: "bad", done: "good", cancelled: "calm",
  issued: "warn", overdue: "bad", paid: "good", assigned: "busy", scheduled: "busy", delayed: "warn", stopped: "bad", changed: "busy",
};
export const tone = (status) => TONES[status] ?? "calm";
export const SECTIONS = { taxes: ["fns"], pension: ["sfr"], traffic: ["gibdd"], documents: ["mvd"] };

export function sectionOf(agency) {
  return Object.keys(SECTIONS).find((name) => SECTIONS[name].includes(agency)) ?? "other";
}

/** An item of the snapshot in the form that the cards show: {title, status, lines, sum, why, deadline}. Never fails on a
 *  type or a status of a later version. */
export function card(item) {
  const more = item.data ?? item;
  const status = more.status ?? item.status;
  const said = { type: item.type, agency: item.agency, updated: item.updated, status, title: item.title ?? item.service ?? words.types[item.type] ?? item.type, lines: [], why: item.reason?.text ?? more.reason?.text };
  switch (item.type) {
    case "gov.status.changed":
      said.title = item.title ?? item.service;
      said.number = item.application;
      said.deadline = item.deadline;
      break;
    case "gov.record.changed": {
      const names = words.registries;
      said.title = [names[item.registry] ?? item.registry, names[item.key] ?? item.key].join(": ");
      said.lines = Object.entries(item.fields);
      said.lines.push([words.asOf, moment(item.as_of)]);
      break;
    }
    case "gov.fine.changed":
    case "gov.payout.changed":
      said.number = more.number;
      said.sum = roubles(more.amount);
      said.deadline = ["issued", "overdue"].includes(status) ? (more.discount_until ?? more.deadline) : undefined;
      if (more.date) said.lines.push([statusName(status, item.type), day(more.date)]);
      break;
    case "gov.code.sent":
      said.title = more.purpose;
      said.sum = more.code;
      said.deadline = more.until ?? item.until;
      break;
    default:
      said.number = more.case;
      said.deadline = more.deadline;
      said.text = item.text ?? more.text;
      said.url = item.url ?? more.url;
  }
  return said;
}

/** An event in one line: {label, text, tone}. */
export function line(event) {
  if (event === null) return { agency: "", label: words.erased, text: "", tone: "calm" };
  const { data = {}, type } = event;
  const code = String(event.source).replace("/agencies/", "");
  const said = { agency: agencyName(code), code, label: data.title ?? words.types[type] ?? type, text: data.text ?? "", tone: tone(data.status), status: data.status, type };
  switch (type) {
    case "gov.status.changed":
      said.label = data.title ?? data.service;
      said.text = [`${words.number} ${data.application}`, data.reason?.text].filter(Boolean).join(". ");
      break;
    case "gov.fine.changed":
      said.label = `${words.fines}: ${data.title ?? data.number}`;
      said.text = roubles(data.amount);
      break;
    case "gov.payout.changed":
      said.label = data.title ?? words.payouts;
      said.text = [roubles(data.amount), data.date && day(data.date)].filter(Boolean).join(", ");
      break;
    case "gov.record.changed":
      said.label = [words.registries[data.registry] ?? data.registry, words.registries[data.key] ?? data.key].join(": ");
      said.text = Object.entries(data.fields).map((pair) => pair.join(": ")).join(", ");
      break;
    case "gov.code.sent":
      said.label = `${words.types[type]}: ${data.code}`;
      said.text = data.purpose;
      break;
    case "gov.court.decided":
      said.text = [`${words.number} ${data.case}`, data.text].join(". ");
      break;
    case "gov.emergency.published":
      said.urgent = true;
      break;
  }
  return said;
}
