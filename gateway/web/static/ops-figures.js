// What the figures of all nodes add up to, over time. Pure: no clock and no page. Times are milliseconds since 1970,
// durations seconds. A node says what it counted since its figures before, so that counts of any nodes and intervals
// are added, and so are their histograms: percentiles come from the sum, never from other percentiles.

export const PRIORITIES = ["urgent", "high", "normal", "bulk"];
/** Service level: this share of an agency's events is committed within so many seconds of what they tell about. */
export const TARGET = { seconds: 300, share: 0.95 };

const SLOT_MS = 10_000;
const SILENT_S = 15; // and at least three intervals of its own: then a node is said to be silent
// Upper bounds as in gateway/metrics.py; a value lies between two of them.
export const BOUNDS = [0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300, 600];

const COUNTS = ["opened", "hellos", "accepted", "duplicates", "replayed", "acks", "sweeps", "sweep_behind", "relayed", "cpu"];
const MAPS = ["closed", "handshake_rejects", "rejected", "delivered", "resyncs"];
const TIMES = ["hello", "append", "loop_lag"];
const TIMES_BY_PRIORITY = ["to_socket", "to_ack"];
const GAUGES = ["sessions", "opening", "feeds", "stalled", "behind", "memory", "open_files"];
const HEALTH = { store: ["failures"], bus: ["failures", "gaps", "holes"] };

// Histograms: a Map of upper bound (Infinity for the last) to count.

/** Add a histogram as it travels, `[[bound or null, count], …]`, or another Map. */
export function merge(into, buckets) {
  for (const [bound, count] of buckets) {
    const at = bound ?? Infinity;
    into.set(at, (into.get(at) ?? 0) + count);
  }
  return into;
}

export const total = (buckets) => [...buckets.values()].reduce((sum, count) => sum + count, 0);

const lower = (bound) => BOUNDS.findLast((other) => other < bound) ?? 0;

/** The value below which the share `q` lies, or null of nothing; evenly spread within a bucket, as Prometheus does it.
 *  Past the last bound it is that bound. */
export function percentile(buckets, q) {
  const rank = q * total(buckets);
  if (!rank) return null;
  let below = 0;
  for (const [bound, count] of [...buckets].sort(([a], [b]) => a - b)) {
    const low = lower(bound);
    if (below + count >= rank) return bound === Infinity ? low : low + ((bound - low) * (rank - below)) / count;
    below += count;
  }
  return null;
}

/** The share of values within `limit`, or null of nothing; a bucket that lies across it counts in part. */
export function share(buckets, limit) {
  const all = total(buckets);
  const part = (bound) => (bound <= limit ? 1 : bound === Infinity ? 0 : Math.max(0, (limit - lower(bound)) / (bound - lower(bound))));
  return all ? [...buckets].reduce((sum, [bound, count]) => sum + count * part(bound), 0) / all : null;
}

// Sums of one node, or of all

const nothing = () => ({ seconds: 0, counts: new Map(), times: new Map(), gauges: {} });

const count = (sums, name, number) => sums.counts.set(name, (sums.counts.get(name) ?? 0) + number);

function time(sums, name, buckets) {
  if (!sums.times.has(name)) sums.times.set(name, new Map());
  merge(sums.times.get(name), buckets);
}

function addNode(sums, data) {
  sums.seconds += data.seconds;
  for (const name of COUNTS) count(sums, name, data[name] ?? 0);
  for (const name of MAPS) for (const [word, number] of Object.entries(data[name] ?? {})) count(sums, `${name}.${word}`, number);
  for (const [part, names] of Object.entries(HEALTH)) for (const name of names) count(sums, `${part}.${name}`, data[part]?.[name] ?? 0);
  for (const name of TIMES) time(sums, name, data[name] ?? []);
  for (const name of TIMES_BY_PRIORITY) for (const [word, buckets] of Object.entries(data[name] ?? {})) time(sums, `${name}.${word}`, buckets);
  for (const name of GAUGES) sums.gauges[name] = data[name] ?? 0;
}

/** Counts and histograms add up; gauges are those of `more`, which is later. */
function append(sums, more) {
  sums.seconds += more.seconds;
  for (const [name, number] of more.counts) count(sums, name, number);
  for (const [name, buckets] of more.times) time(sums, name, buckets);
  sums.gauges = more.gauges;
  return sums;
}

/** The counts of all words of one name: `{urgent: 3, …}` of "delivered". */
export function words(counts, name) {
  const found = {};
  for (const [full, number] of counts) if (full.startsWith(`${name}.`) && number) found[full.slice(name.length + 1)] = number;
  return found;
}

export const sum = (map) => Object.values(map).reduce((all, number) => all + number, 0);

const noAgency = () => ({ accepted: 0, rejected: {}, delay: new Map() });

function addAgency(sums, { accepted, rejected, delay }) {
  sums.accepted += accepted;
  for (const [reason, number] of Object.entries(rejected)) sums.rejected[reason] = (sums.rejected[reason] ?? 0) + number;
  merge(sums.delay, delay);
  return sums;
}

/** What several points counted together: {counts, times, delay}. */
export function together(points) {
  const all = { ...nothing(), delay: new Map() };
  for (const point of points) {
    if (!point) continue;
    for (const [name, number] of point.counts) count(all, name, number);
    for (const [name, buckets] of point.times) time(all, name, buckets);
    merge(all.delay, point.delay);
  }
  return all;
}

export class Figures {
  constructor() {
    this.slots = new Map(); // begin → {told: how many figures, nodes: Map(name → sums), agencies: Map(code → sums)}
    this.made = new Map(); // points that were made, with how many figures they had; a later one may need a new point
    this.nodes = new Map(); // name → {at, data}: its last ones
    this.last = new Map(); // code → time of its last accepted event
    this.roles = new Map(); // name → {owner, at, until}: its last known lease
  }

  get empty() {
    return this.nodes.size === 0;
  }

  /** The figures of one node, made at `at`. In any order; each once. */
  add(at, data) {
    const begin = Math.floor(at / SLOT_MS) * SLOT_MS;
    if (!this.slots.has(begin)) this.slots.set(begin, { told: 0, nodes: new Map(), agencies: new Map() });
    const slot = this.slots.get(begin);
    const { nodes, agencies } = slot;
    slot.told += 1;
    if (!nodes.has(data.node)) nodes.set(data.node, nothing());
    addNode(nodes.get(data.node), data);
    for (const [code, said] of Object.entries(data.agencies ?? {})) {
      if (!agencies.has(code)) agencies.set(code, noAgency());
      addAgency(agencies.get(code), said);
      if (said.last && !(Date.parse(said.last) <= (this.last.get(code) ?? 0))) this.last.set(code, Date.parse(said.last));
    }
    for (const { name, owner, left } of data.leases ?? []) {
      if (!(this.roles.get(name)?.at >= at)) this.roles.set(name, { owner, at, until: at + left * 1000 });
    }
    if (!(this.nodes.get(data.node)?.at >= at)) this.nodes.set(data.node, { at, data });
  }

  /** Nothing older than this is asked for any more. */
  forget(before) {
    for (const begin of this.slots.keys()) if (begin < before - SLOT_MS) this.slots.delete(begin);
    for (const known of [this.nodes, this.roles, this.made]) for (const [name, { at }] of known) if (at < before - SLOT_MS) known.delete(name);
  }

  /** How long an interval a point of a chart must have at least: two figures of the slowest node. */
  step(wanted) {
    const slowest = Math.max(0, ...[...this.nodes.values()].map(({ data }) => data.seconds * 2000));
    return Math.ceil(Math.max(wanted, slowest) / SLOT_MS) * SLOT_MS;
  }

  /** What was told from `from` until `to`, oldest first: [begin, {nodes, agencies}]. */
  *within(from, to) {
    for (let begin = Math.ceil(from / SLOT_MS) * SLOT_MS; begin < to; begin += SLOT_MS) {
      const slot = this.slots.get(begin);
      if (slot) yield [begin, slot];
    }
  }

  /** What each node counted from `from` until `to`: name → sums. */
  byNode(from, to) {
    const found = new Map();
    for (const [, { nodes }] of this.within(from, to)) {
      for (const [name, sums] of nodes) found.set(name, append(found.get(name) ?? nothing(), sums));
    }
    return found;
  }

  /** One point for each interval of `step` ms: what all nodes together counted in it, {at, seconds, counts, times, gauges,
   *  rates: name → per second, delay: of all agencies}, or null where no node told figures. A node's rate is over the
   *  seconds that it counted, so that an interval that has only begun is no dip. */
  points(from, to, step) {
    const points = [];
    for (let at = Math.floor(from / step) * step; at < to; at += step) {
      let told = 0;
      for (const [, slot] of this.within(at, at + step)) told += slot.told;
      const known = this.made.get(`${at} ${step}`);
      const point = known?.told === told ? known.point : told ? this.point(at, step) : null;
      this.made.set(`${at} ${step}`, { at, told, point });
      points.push(point);
    }
    return points;
  }

  point(at, step) {
    const point = { ...nothing(), at, rates: new Map(), delay: new Map() };
    for (const { seconds, counts, times, gauges } of this.byNode(at, at + step).values()) {
      for (const [name, number] of counts) {
        count(point, name, number);
        point.rates.set(name, (point.rates.get(name) ?? 0) + number / (seconds || 1));
      }
      for (const [name, buckets] of times) time(point, name, buckets);
      for (const [name, number] of Object.entries(gauges)) point.gauges[name] = (point.gauges[name] ?? 0) + number;
    }
    for (const [, { agencies }] of this.within(at, at + step)) for (const { delay } of agencies.values()) merge(point.delay, delay);
    return point;
  }

  /** The nodes that said something since `from`, by name: {name, data, at, silent: seconds since then or 0, sums}. */
  present(from, now) {
    const sums = this.byNode(from, now + SLOT_MS);
    return [...this.nodes].filter(([, { at }]) => at >= from).sort(([a], [b]) => (a < b ? -1 : 1)).map(([name, { at, data }]) => {
      const quiet = (now - at) / 1000;
      return { name, at, data, silent: quiet > Math.max(SILENT_S, 3 * data.seconds) ? quiet : 0, sums: sums.get(name) ?? nothing() };
    });
  }

  /** All agencies that are known: {code, last, accepted, rejected, delay, level, trace: accepted in each interval of `step`}. */
  agencies(from, to, step) {
    const begin = Math.floor(from / step) * step;
    const length = Math.ceil((to - begin) / step);
    const found = new Map();
    for (const [at, { agencies }] of this.within(begin, to)) {
      for (const [code, said] of agencies) {
        if (!found.has(code)) found.set(code, { code, ...noAgency(), trace: Array(length).fill(0) });
        const agency = addAgency(found.get(code), said);
        agency.trace[Math.floor((at - begin) / step)] += said.accepted;
      }
    }
    return [...found.values()].sort((a, b) => (a.code < b.code ? -1 : 1))
      .map((agency) => ({ ...agency, last: this.last.get(agency.code) ?? null, level: share(agency.delay, TARGET.seconds), refused: sum(agency.rejected) }));
  }

  /** How many agencies did not fit into the figures of a node, the most that any tells: those that did least. */
  get omitted() {
    return Math.max(0, ...[...this.nodes.values()].map(({ data }) => data.agencies_omitted ?? 0));
  }

  /** The roles of the workers and who had them last: {name, owner, left: seconds that the lease lasts, 0 between two
   *  steps of the role, idle: seconds since it was held}. */
  leases(now) {
    const latest = Math.max(0, ...[...this.nodes.values()].map(({ at }) => at));
    return [...this.roles].sort(([a], [b]) => (a < b ? -1 : 1)).map(([name, { owner, at, until }]) => ({
      name, owner, left: at < latest ? 0 : Math.max(0, (until - now) / 1000), idle: Math.max(0, (now - at) / 1000),
    }));
  }

  /** The slow sessions of all nodes that are not silent, the longest first: what the node says of each, and `node`. */
  slow(from, now) {
    return this.present(from, now).filter(({ silent }) => !silent)
      .flatMap(({ name, data }) => (data.slow ?? []).map((one) => ({ ...one, node: name }))).sort((a, b) => b.seconds - a.seconds);
  }
}

/** The alerts that fire, critical and newest first, of all that were told (`{offset, data}`, in any order): the last
 *  word of each rule about each subject counts. */
export function firing(alerts) {
  const last = new Map();
  for (const alert of alerts) {
    const key = `${alert.data.rule} ${alert.data.subject}`;
    if (!(last.get(key)?.offset > alert.offset)) last.set(key, alert);
  }
  const weight = ({ data }) => (data.severity === "critical" ? 0 : 1);
  return [...last.values()].filter(({ data }) => data.state === "firing").sort((a, b) => weight(a) - weight(b) || b.offset - a.offset);
}
