// What figures add up to, on Node: node --test figures.test.mjs
import assert from "node:assert/strict";
import { test } from "node:test";
import { BOUNDS, Figures, firing, merge, percentile, share, sum, together, total, words } from "../../gateway/web/static/ops-figures.js";

const T = 1_800_000_000_000;
const quiet = {
  version: "1", started: "2027-01-01T00:00:00Z", sessions: 0, opening: 0, feeds: 0, draining: false, stalled: 0, behind: 0, opened: 0, closed: {}, handshake_rejects: {},
  hellos: 0, hello: [], accepted: 0, duplicates: 0, rejected: {}, delivered: {}, replayed: 0, acks: 0, resyncs: {}, to_socket: {}, to_ack: {}, append: [], loop_lag: [],
  sweeps: 0, sweep_behind: 0, relayed: 0, store: { ready: true, failures: 0, disk_free: 1, disk_size: 2 }, bus: { healthy: true, failures: 0, gaps: 0, holes: 0 },
  memory: 1, cpu: 0, open_files: 1, max_open_files: 2, slow: [], agencies: {}, leases: [],
};
const of = (node, more) => ({ ...quiet, node, seconds: 5, ...more });
const filled = (...all) => all.reduce((figures, [at, data]) => (figures.add(T + at * 1000, data), figures), new Figures());

test("percentiles of merged histograms, evenly spread within a bucket", () => {
  const both = merge(merge(new Map(), [[0.01, 50], [0.02, 40]]), [[0.02, 8], [null, 2]]);
  assert.equal(total(both), 100);
  assert.equal(percentile(both, 0.5), 0.01);
  assert.equal(percentile(both, 0.74), 0.015);
  assert.equal(percentile(both, 1), BOUNDS.at(-1));
  assert.equal(percentile(new Map(), 0.5), null);
  assert.equal(percentile(new Map([[0.0001, 4]]), 0.5), 0.00005);
});

test("a bucket that lies across the service level counts in part", () => {
  assert.equal(share(new Map([[300, 3], [600, 1], [Infinity, 0]]), 450), 3.5 / 4);
  assert.equal(share(new Map([[Infinity, 4]]), 300), 0);
  assert.equal(share(new Map(), 300), null);
});

test("nodes and intervals add up, gauges are the last ones", () => {
  const figures = filled(
    [0, of("a", { sessions: 5, opened: 10, delivered: { urgent: 2, bulk: 3 } })], [5, of("a", { sessions: 7, opened: 5, delivered: { bulk: 5 } })],
    [1, of("b", { sessions: 100, opened: 20, to_ack: { urgent: [[0.01, 4]] } })], [12, of("b", { sessions: 90, to_ack: { urgent: [[0.02, 4]] } })]);
  const all = together(figures.points(T, T + 20_000, 10_000));
  assert.equal(all.counts.get("opened"), 35);
  assert.deepEqual(words(all.counts, "delivered"), { urgent: 2, bulk: 8 });
  assert.equal(sum(words(all.counts, "delivered")), 10);
  assert.deepEqual([...all.times.get("to_ack.urgent")], [[0.01, 4], [0.02, 4]]);
  const [first, second, none] = figures.points(T, T + 30_000, 10_000);
  assert.equal(first.gauges.sessions, 107);
  assert.equal(first.rates.get("opened"), 15 / 10 + 20 / 5);
  assert.equal(second.gauges.sessions, 90);
  assert.equal(none, null);
});

test("an interval that only began is no dip, and figures come in any order", () => {
  const figures = filled([15, of("a", { accepted: 50, sessions: 3 })], [5, of("a", { accepted: 50, sessions: 2 })], [0, of("a", { accepted: 50, sessions: 1 })]);
  assert.deepEqual(figures.points(T, T + 20_000, 10_000).map(({ rates }) => rates.get("accepted")), [10, 10]);
  assert.equal(figures.nodes.get("a").data.sessions, 3);
});

test("a point is made anew when more is told of its time", () => {
  const figures = filled([0, of("a", { accepted: 5 })]);
  const accepted = () => figures.points(T, T + 20_000, 10_000).map((point) => point?.counts.get("accepted"));
  assert.deepEqual(accepted(), [5, undefined]);
  figures.add(T + 5000, of("b", { accepted: 7, agencies: { fns: { accepted: 7, rejected: {}, last: null, delay: [[1, 7]] } } }));
  figures.add(T + 10_000, of("a", { accepted: 1 }));
  assert.deepEqual(accepted(), [12, 1]);
  assert.deepEqual([...together(figures.points(T, T + 20_000, 10_000)).delay], [[1, 7]]);
  assert.equal(figures.points(T, T + 20_000, 10_000)[0], figures.points(T, T + 20_000, 10_000)[0]);
});

test("charts have no gaps when figures come seldom", () => {
  assert.equal(filled([0, of("a", {})]).step(5000), 10_000);
  assert.equal(filled([0, of("a", { seconds: 30 })]).step(5000), 60_000);
});

test("agencies: sums over nodes, the latest event, the service level", () => {
  const agency = (accepted, last, delay, rejected = {}) => ({ accepted, rejected, last, delay });
  const figures = filled(
    [0, of("a", { agencies: { fns: agency(3, "2027-01-15T08:00:00Z", [[1, 3]]), quiet: agency(0, null, []) } })],
    [2, of("b", { agencies: { fns: agency(1, "2027-01-15T07:00:00Z", [[null, 1]], { stale: 2 }) } })]);
  const [fns, other] = figures.agencies(T, T + 20_000, 10_000);
  assert.deepEqual([fns.code, fns.accepted, fns.refused, fns.rejected, fns.level], ["fns", 4, 2, { stale: 2 }, 0.75]);
  assert.equal(fns.last, Date.parse("2027-01-15T08:00:00Z"));
  assert.deepEqual(fns.trace, [4, 0]);
  assert.deepEqual([other.code, other.last, other.level], ["quiet", null, null]);
});

test("a node that says nothing is silent, and forgotten in the end", () => {
  const figures = filled([0, of("a", { slow: [{ session: "1", seconds: 3 }] })], [60, of("b", { slow: [{ session: "2", seconds: 4 }, { session: "3", seconds: 9 }] })]);
  const [a, b] = figures.present(T, T + 61_000);
  assert.deepEqual([a.silent, b.silent], [61, 0]);
  assert.deepEqual(figures.slow(T, T + 61_000).map(({ session, node }) => session + node), ["3b", "2b"]);
  figures.forget(T + 50_000);
  assert.deepEqual(figures.present(T, T + 61_000).map(({ name }) => name), ["b"]);
  assert.deepEqual([...figures.byNode(T, T + 61_000).keys()], ["b"]);
});

test("leases run on after the figures that told of them, and are free between two steps", () => {
  const figures = filled(
    [0, of("a", { leases: [{ name: "relay", owner: "a", left: 9 }, { name: "tidy", owner: "a", left: 30 }] })],
    [5, of("b", { leases: [{ name: "relay", owner: "b", left: 8 }, { name: "alerts", owner: "a", left: 1 }] })]);
  assert.deepEqual(figures.leases(T + 7000), [
    { name: "alerts", owner: "a", left: 0, idle: 2 }, { name: "relay", owner: "b", left: 6, idle: 2 }, { name: "tidy", owner: "a", left: 0, idle: 7 }]);
});

test("the last word of each rule about each subject counts", () => {
  const said = (offset, rule, subject, state, severity = "warning") => ({ offset, data: { rule, subject, state, severity } });
  const all = [said(5, "late", "agency a", "firing"), said(4, "late", "agency b", "resolved"), said(1, "late", "agency b", "firing"), said(3, "node", "node 1", "firing", "critical"), said(6, "bus", "", "firing")];
  assert.deepEqual(firing(all).map(({ offset }) => offset), [3, 6, 5]);
});
