import { isChunkSize, MAX_CHUNK_SIZE, MIN_CHUNK_SIZE } from '../chunks/geometry.js';
import { usage } from '../errors.js';

const SUFFIXES = ['', 'K', 'M', 'G', 'T', 'P'];

/** Bytes of `256K`, `5G`, `512`: binary suffixes, as LVM and QEMU have them. Undefined if it is no size. */
export function parseSize(text: string): number | undefined {
  const match = /^([0-9]{1,15})([KMGTP]?)(?:i?B)?$/i.exec(text);
  if (match === null) return undefined;
  const bytes = Number(match[1]) * 1024 ** SUFFIXES.indexOf(match[2]!.toUpperCase());
  return Number.isSafeInteger(bytes) ? bytes : undefined;
}

export function parseChunkSize(text: string): number {
  const bytes = parseSize(text);
  if (bytes !== undefined && isChunkSize(bytes)) return bytes;
  throw usage(`${JSON.stringify(text)} is no chunk size`, {
    hint: `give a power of two from ${MIN_CHUNK_SIZE / 1024}K to ${MAX_CHUNK_SIZE / 1024 / 1024}M, for example --chunk-size=256K`,
  });
}

/** The elements of `a,b,c`. Empty ones are a mistake that is better named than ignored. */
export function parseList(text: string, option: string): string[] {
  if (text.trim() === '') throw usage(`${option} is empty`, { hint: `give it as ${option}=first,second` });
  const elements = text.split(',').map((element) => element.trim());
  if (elements.includes(''))
    throw usage(`${option}=${text} has an empty element`, { hint: `give it as ${option}=first,second` });
  return elements;
}

/** A whole number from `least` on. */
export function parseCount(text: string, option: string, least = 0): number {
  if (/^[0-9]{1,9}$/.test(text) && Number(text) >= least) return Number(text);
  throw usage(`${option}=${text} is no number from ${least} on`, {
    hint: `for example: ${option}=${least + 3}`,
  });
}

export function parseChoice<T extends string>(text: string, option: string, choices: readonly T[]): T {
  const found = choices.find((choice) => choice === text);
  if (found !== undefined) return found;
  throw usage(`${option}=${text} is not possible`, { hint: `one of: ${choices.join(', ')}` });
}
