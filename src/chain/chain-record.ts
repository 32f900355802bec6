import * as path from 'node:path';
import * as v from 'valibot';
import { isTarget } from '../chunks/names.js';
import { failed, messageOf } from '../errors.js';
import { readIfExists, replaceFile } from '../host/durable.js';

/** In the directory of a VM's chain. */
const NAME = 'chain.json';
const FORMAT = 'chunkmount-chain';

/** Digits of a point's number in names, at least. */
const NUMBER_DIGITS = 4;
const IMAGE_NAME = /^([a-z][a-z0-9]{0,15})\.[0-9]{4,9}\.qcow2$/;

const count = v.pipe(v.number(), v.safeInteger(), v.minValue(0));
const imageName = v.pipe(v.string(), v.regex(IMAGE_NAME));

const copySchema = v.object({
  target: v.pipe(v.string(), v.check(isTarget)),
  /** A qcow2 image in the chain's directory. */
  file: imageName,
  /** The copy that it lies on: that disk's copy of an earlier point; null for a full one. */
  backing: v.nullable(imageName),
  /** Of the file, in bytes. */
  size: count,
  /** Hex digits, of the file. */
  sha256: v.pipe(v.string(), v.regex(/^[0-9a-f]{64}$/)),
  /** Of the file, in milliseconds since 1970: while it is the same, the sum need not be computed again. */
  mtime: v.number(),
  /** Of the disk, in bytes. */
  virtualSize: count,
});

const pointSchema = v.object({
  number: v.pipe(v.number(), v.safeInteger(), v.minValue(1)),
  /** Of the session that made it. */
  id: v.string(),
  /** ISO 8601, UTC. */
  time: v.pipe(v.string(), v.isoTimestamp()),
  consistency: v.string(),
  /** The file with the VM's definition. */
  definition: v.pipe(v.string(), v.regex(/^[0-9]{4,9}\.xml$/)),
  disks: v.array(copySchema),
});

const recordSchema = v.object({
  format: v.literal(FORMAT),
  version: v.literal(1),
  name: v.string(),
  uuid: v.string(),
  points: v.array(pointSchema),
});

/** The copy of one disk that a point added. */
export type DiskCopy = v.InferOutput<typeof copySchema>;
/** A moment that can be restored. */
export type Point = v.InferOutput<typeof pointSchema>;
/** What `chain.json` says of the copies beside it. */
export type ChainRecord = v.InferOutput<typeof recordSchema>;

export const point = pointSchema;

export function numberText(number: number): string {
  return String(number).padStart(NUMBER_DIGITS, '0');
}

/** Throws unless each copy lies on one of the same disk that an earlier point added, and no file is named twice. */
function checkLinks({ points }: ChainRecord): void {
  const targetOf = new Map<string, string>();
  let last = 0;
  for (const { number, disks } of points) {
    if (number <= last) throw new Error(`point ${number} comes after point ${last}`);
    last = number;
    for (const { target, file, backing } of disks) {
      if (IMAGE_NAME.exec(file)?.[1] !== target || targetOf.has(file))
        throw new Error(`${file} is out of place`);
      if (backing !== null && targetOf.get(backing) !== target) throw new Error(`${file} lies on ${backing}`);
    }
    for (const { target, file } of disks) targetOf.set(file, target);
  }
}

/** What was read from a `chain.json`. Throws for what does not add up. */
export function parseChainRecord(text: string): ChainRecord {
  const record = v.parse(recordSchema, JSON.parse(text));
  checkLinks(record);
  return record;
}

/** The record in a chain's directory, undefined if there is none. Throws when it is damaged. */
export function readChainRecord(directory: string): ChainRecord | undefined {
  const file = path.join(directory, NAME);
  const text = readIfExists(file);
  if (text === undefined) return undefined;
  try {
    return parseChainRecord(text);
  } catch (error) {
    throw failed(`${file} is damaged: ${messageOf(error)}`, {
      hint: 'put it back from a copy of that directory, or begin a new chain in another one: --to=DIR --full',
      cause: error,
    });
  }
}

export function writeChainRecord(directory: string, record: ChainRecord): void {
  checkLinks(record);
  replaceFile(path.join(directory, NAME), `${JSON.stringify(record, undefined, 1)}\n`);
}

export function newChainRecord(name: string, uuid: string): ChainRecord {
  return { format: FORMAT, version: 1, name, uuid, points: [] };
}

/** A copy and all that it lies on, itself first. Throws if the record does not have it. */
export function copiesBelow(record: ChainRecord, file: string): [DiskCopy, ...DiskCopy[]] {
  const all = new Map(record.points.flatMap(({ disks }) => disks.map((disk) => [disk.file, disk] as const)));
  const copies: DiskCopy[] = [];
  for (let next: string | null = file; next !== null; next = copies.at(-1)!.backing) {
    const copy = all.get(next);
    if (copy === undefined) throw failed(`the chain has no copy ${next}`);
    copies.push(copy);
  }
  return copies as [DiskCopy, ...DiskCopy[]];
}
