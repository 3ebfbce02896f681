/** What is decided about events and reconnects, without a socket or a clock. Contract, sections 3.4 to 3.11. */

export type Message = Record<string, any>;
export type CloudEvent = Record<string, any>;
/** (offset, event); an erased event is null. */
export type Numbered = [number, CloudEvent | null];
export interface Position { epoch: string; offset: number }

/** An offset was skipped: the connection cannot be trusted, a resume from the kept position can. */
export class Hole extends Error {}

/** What the device knows of one feed in one session. An ack never passes `received` nor `kept`. */
export class Feed {
  /** The highest offset that came in this session, or its start. */
  received: number;
  /** The highest offset that is in the keeper. */
  kept: number;
  acked: number;
  /** A snapshot is due: nothing is kept or acknowledged until it is. */
  loading = false;
  live = false;
  private held: Numbered[] = [];
  private moved = false;
  private behind = false;

  constructor(readonly name: string, public epoch: string, public start: number) {
    this.received = this.kept = this.acked = start;
  }

  /** The events to keep now. Repeats are dropped; throws Hole. */
  take(events: Numbered[]): Numbered[] {
    const fresh: Numbered[] = [];
    for (const numbered of events) {
      const offset = numbered[0];
      if (offset <= this.received) continue;
      if (offset !== this.received + 1) throw new Hole(`${this.name}: ${offset} came after ${this.received}`);
      this.received = offset;
      this.moved = true;
      if (this.loading) this.held.push(numbered);
      else if (offset > this.kept) fresh.push(numbered);
    }
    return fresh;
  }

  /** Continuity is broken: begin again at the head, with a snapshot. */
  restart(epoch: string, offset: number): void {
    this.epoch = epoch;
    this.start = this.received = this.kept = offset;
    this.load();
  }

  load(): void {
    this.loading = true;
    this.acked = this.start - 1;
  }

  /** A snapshot of all up to `offset` is kept. The held events after it; those at or below are dropped. */
  loaded(offset: number): Numbered[] {
    this.kept = offset;
    this.loading = false;
    const held = this.held;
    this.held = [];
    return held.filter(([at]) => at > offset);
  }

  /** The offset to acknowledge now, or -1. */
  due(): number {
    const offset = Math.min(this.kept, this.received);
    return !this.loading && offset > this.acked ? offset : -1;
  }

  /** A beat says where the head is. True at the second in a row that shows a loss (contract, 3.9). */
  stuck(head: number): boolean {
    const ahead = head > this.received && this.due() < 0;
    const stuck = ahead && this.behind && !this.moved;
    this.behind = ahead;
    this.moved = false;
    return stuck;
  }
}

/** What a close code asks for: "the range says what to do". 0 is no code, or no connection at all. */
export function advice(code: number): "stop" | "token" | "once" | "again" {
  if (code === 4401) return "token";
  if (code === 4400) return "once";
  return code >= 4400 && code < 4500 ? "stop" : "again";
}
