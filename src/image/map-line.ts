import * as v from 'valibot';

const bytes = v.pipe(v.number(), v.safeInteger(), v.minValue(0));

/** One extent as `qemu-img map --output=json` prints it; more keys may be there, and are of no use to us. */
const mapLineSchema = v.object({
  start: bytes,
  length: bytes,
  depth: bytes,
  zero: v.boolean(),
  data: v.boolean(),
  offset: v.optional(bytes),
});

/** `start`, `length` and `offset` in bytes; `depth` 0 is the image itself, 1 its backing file. */
export type MapLine = v.InferOutput<typeof mapLineSchema>;

/**
 * Parses one line of `qemu-img map --output=json`, which prints one object a line: `[{…},`, `{…},`, `{…}]`. Returns undefined for
 * a line without an object (a bracket of its own, an empty line). Throws for everything else.
 */
export function parseMapLine(line: string): MapLine | undefined {
  const begin = line.startsWith('[') ? 1 : 0;
  const end = line.endsWith(',') || line.endsWith(']') ? -1 : line.length;
  const body = line.slice(begin, end);
  return body === '' ? undefined : v.parse(mapLineSchema, JSON.parse(body));
}
