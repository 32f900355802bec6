import * as path from 'node:path';
import * as v from 'valibot';
import { readIfExists, replaceFile } from '../host/durable.js';

const Schema = v.object({
  name: v.string(),
  id: v.string(),
  /** A VM of libvirt, or image files given by name. */
  source: v.picklist(['vm', 'images']),
  connect: v.optional(v.string()),
  mountpoint: v.string(),
  /** ISO 8601. */
  begun: v.string(),
  transport: v.picklist(['kernel', 'native']),
  disks: v.array(v.object({ target: v.string(), size: v.number(), snapshot: v.string() })),
});

/** What `list` shows of a session, in `<session>/session.json`. The journal alone decides what is undone. */
export type SessionRecord = v.InferOutput<typeof Schema>;

const NAME = 'session.json';

export function writeSessionRecord(sessionDirectory: string, record: SessionRecord): void {
  replaceFile(path.join(sessionDirectory, NAME), `${JSON.stringify(record)}\n`);
}

/** Undefined: the session did not get that far. */
export function readSessionRecord(sessionDirectory: string): SessionRecord | undefined {
  const text = readIfExists(path.join(sessionDirectory, NAME));
  if (text === undefined) return undefined;
  try {
    return v.parse(Schema, JSON.parse(text));
  } catch {
    return undefined;
  }
}
