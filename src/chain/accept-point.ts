import * as fs from 'node:fs';
import * as path from 'node:path';
import * as v from 'valibot';
import { failed } from '../errors.js';
import { fsyncDirectory } from '../host/durable.js';
import type { Journal, JournalEntry } from '../session/journal.js';
import { readOverlayRecord } from '../snapshot/overlay/record.js';
import { OVERLAY_KIND } from '../snapshot/watched-kinds.js';
import { newChainRecord, type Point, point, readChainRecord, writeChainRecord } from './chain-record.js';
import { liveChain, writeLiveChain } from './live-chain.js';

export const ACCEPT_KIND = 'chain-accept';

const schema = v.object({
  name: v.string(),
  directory: v.string(),
  point,
  /** Files of the point under their temporary names, and the names that they get. */
  parts: v.array(v.object({ part: v.string(), file: v.string() })),
  /** Where `live` is to be written. */
  liveFile: v.string(),
  live: liveChain,
  /** The overlays of this session, which stay. */
  overlays: v.array(v.string()),
});

type Acceptance = v.InferOutput<typeof schema>;

function publish({ directory, parts }: Acceptance): void {
  for (const { part, file } of parts) {
    const final = path.join(directory, file);
    if (fs.existsSync(path.join(directory, part))) fs.renameSync(path.join(directory, part), final);
    else if (!fs.existsSync(final)) {
      throw failed(`${final}, a copy that was just made, is gone`, {
        hint: `is ${directory} mounted? put it back, then run the same command again`,
      });
    }
  }
  fsyncDirectory(directory);
}

function addPoint(added: Point, { name, directory, live }: Acceptance): void {
  const record = readChainRecord(directory) ?? newChainRecord(name, live.uuid);
  const there = record.points.find(({ number }) => number === added.number);
  if (there === undefined) writeChainRecord(directory, { ...record, points: [...record.points, added] });
  else if (there.id !== added.id) {
    throw failed(`${directory} has another point ${added.number} by now`, {
      hint: 'does another host write there? give each VM a directory of its own',
    });
  }
}

/** Does what is left of an acceptance. Can be repeated. */
export function finishAccept(entry: JournalEntry, journal: Journal): void {
  const acceptance = v.parse(schema, entry.data);
  publish(acceptance);
  addPoint(acceptance.point, acceptance);
  writeLiveChain(acceptance.liveFile, acceptance.live);
  // From here on the overlays are no session's: nobody merges them when it ends.
  for (const pending of journal.pending()) {
    if (pending.kind !== OVERLAY_KIND) continue;
    if (acceptance.overlays.includes(readOverlayRecord(pending).overlay)) journal.undone(pending);
  }
  journal.undone(entry);
}

/**
 * Makes a point valid: until this is recorded a crash means that the VM gets its disks back as they were before the snapshot, and
 * from then on that the point and the layers stay, whatever happens.
 */
export function acceptPoint(acceptance: Acceptance, journal: Journal): void {
  finishAccept(journal.intend(ACCEPT_KIND, { ...acceptance }), journal);
}
