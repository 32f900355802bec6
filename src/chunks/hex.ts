const HEX = /^[0-9a-f]+$/;

/** The number that exactly `length` lower-case hex digits stand for; -1 for anything else. */
export function parseHex(text: string, length: number): number {
  return text.length === length && HEX.test(text) ? Number.parseInt(text, 16) : -1;
}
