/** MessagePack for plain values: what the contract's messages are made of, nothing else. */

export function encode(value: unknown): Uint8Array {
  let bytes = new Uint8Array(256);
  let view = new DataView(bytes.buffer);
  let length = 0;

  /** Make room for `count` bytes; the place where they begin. */
  function room(count: number): number {
    if (length + count > bytes.length) {
      const larger = new Uint8Array(Math.max(bytes.length * 2, length + count));
      larger.set(bytes);
      bytes = larger;
      view = new DataView(bytes.buffer);
    }
    length += count;
    return length - count;
  }

  const byte = (one: number) => view.setUint8(room(1), one);

  /** The head of a text, list or map: its length in as few bytes as it takes. */
  function head(count: number, fix: number, most: number, code8: number, code16: number): void {
    if (count <= most) {
      byte(fix | count);
    } else if (code8 && count < 0x100) {
      byte(code8);
      byte(count);
    } else if (count < 0x10000) {
      byte(code16);
      view.setUint16(room(2), count);
    } else {
      byte(code16 + 1);
      view.setUint32(room(4), count);
    }
  }

  function number(one: number): void {
    if (!Number.isSafeInteger(one)) {
      byte(0xcb);
      view.setFloat64(room(8), one);
    } else if (one >= -32 && one < 128) {
      view.setInt8(room(1), one);
    } else if (one >= 0 && one < 0x100000000) {
      byte(0xce);
      view.setUint32(room(4), one);
    } else {
      byte(0xd3);
      view.setBigInt64(room(8), BigInt(one));
    }
  }

  function write(one: unknown): void {
    if (one === null || one === undefined) {
      byte(0xc0);
    } else if (typeof one === "boolean") {
      byte(one ? 0xc3 : 0xc2);
    } else if (typeof one === "number") {
      number(one);
    } else if (typeof one === "string") {
      const text = new TextEncoder().encode(one);
      head(text.length, 0xa0, 31, 0xd9, 0xda);
      const place = room(text.length);
      bytes.set(text, place);
    } else if (Array.isArray(one)) {
      head(one.length, 0x90, 15, 0, 0xdc);
      one.forEach(write);
    } else {
      const members = Object.entries(one as object).filter(([, member]) => member !== undefined);
      head(members.length, 0x80, 15, 0, 0xde);
      for (const [key, member] of members) {
        write(key);
        write(member);
      }
    }
  }

  write(value);
  return bytes.slice(0, length);
}

/** Throws RangeError for what is cut short or not made of plain values. */
export function decode(bytes: Uint8Array): unknown {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const utf8 = new TextDecoder("utf-8", { fatal: true });
  let place = 0;

  /** Step over `count` bytes; where they begin. */
  function step(count: number): number {
    place += count;
    if (place > bytes.length) throw new RangeError("cut short");
    return place - count;
  }

  function text(count: number): string {
    const from = step(count);
    return utf8.decode(bytes.subarray(from, from + count));
  }

  const list = (count: number): unknown[] => Array.from({ length: count }, read);

  function map(count: number): Record<string, unknown> {
    // Defined, not assigned: a key like `__proto__` is a key like any other.
    const members: [string, unknown][] = [];
    for (let n = 0; n < count; n++) members.push([String(read()), read()]);
    return Object.fromEntries(members);
  }

  const u8 = () => view.getUint8(step(1));
  const u16 = () => view.getUint16(step(2));
  const u32 = () => view.getUint32(step(4));

  function read(): unknown {
    const code = u8();
    if (code < 0x80) return code;
    if (code < 0x90) return map(code & 15);
    if (code < 0xa0) return list(code & 15);
    if (code < 0xc0) return text(code & 31);
    if (code >= 0xe0) return code - 256;
    switch (code) {
      case 0xc0: return null;
      case 0xc2: return false;
      case 0xc3: return true;
      case 0xca: return view.getFloat32(step(4));
      case 0xcb: return view.getFloat64(step(8));
      case 0xcc: return u8();
      case 0xcd: return u16();
      case 0xce: return u32();
      case 0xcf: return Number(view.getBigUint64(step(8)));
      case 0xd0: return view.getInt8(step(1));
      case 0xd1: return view.getInt16(step(2));
      case 0xd2: return view.getInt32(step(4));
      case 0xd3: return Number(view.getBigInt64(step(8)));
      case 0xd9: return text(u8());
      case 0xda: return text(u16());
      case 0xdb: return text(u32());
      case 0xdc: return list(u16());
      case 0xdd: return list(u32());
      case 0xde: return map(u16());
      case 0xdf: return map(u32());
      default: throw new RangeError(`no plain value begins with ${code}`);
    }
  }

  return read();
}
