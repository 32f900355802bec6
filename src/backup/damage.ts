import * as fs from 'node:fs';
import * as path from 'node:path';
import * as v from 'valibot';
import { type ChunkmountError, failed, messageOf } from '../errors.js';
import { readIfExists, replaceFile } from '../host/durable.js';
import type { Reporter } from '../report/reporter.js';
import type { Journal } from '../session/journal.js';
import type { StateDirectory } from '../session/state-directory.js';
import { inspectSnapshots } from '../snapshot/inspect-snapshots.js';
import { removeTracking } from '../tracking/record.js';
import { readSessionRecord } from './session-record.js';
import { type DaemonStatus, readStatus } from './status.js';
import { isStoppedByUs, SERVE } from './stop-serving.js';

/*
 * Why what was copied of a tree is not a good backup. It is looked for once, when nobody can read the tree any more and the snapshots
 * are still there, and noted before anything is undone: a cleanup that is cut off, or that leaves something, has forgotten nothing.
 */

/** A session that was served, and what it stands on. */
export interface ServedSession {
  readonly name: string;
  readonly state: StateDirectory;
  readonly journal: Journal;
  readonly reporter: Reporter;
}

function damageFile(directory: string): string {
  return path.join(directory, 'lost.json');
}

const Damage = v.object({
  message: v.string(),
  hint: v.optional(v.string()),
  details: v.optional(v.record(v.string(), v.unknown())),
});

/** What this cleanup or an earlier one has noted. */
export function readDamage(directory: string): ChunkmountError | undefined {
  const text = readIfExists(damageFile(directory));
  if (text === undefined) return undefined;
  const { message, hint, details } = v.parse(Damage, JSON.parse(text));
  return failed(message, { hint, details });
}

/** Looks for damage and notes it, if anybody can have read the tree. Returns it: on a full disk it cannot be noted. */
export async function noteDamage(session: ServedSession): Promise<ChunkmountError | undefined> {
  const { name, state, reporter } = session;
  const directory = state.session(name);
  const damage = await findDamage(session);
  if (damage === undefined) return undefined;
  const { message, hint, details } = damage;
  try {
    replaceFile(damageFile(directory), JSON.stringify({ message, hint, details }));
  } catch (error) {
    reporter.warn(`that the tree of ${name} was not whole could not be noted: ${messageOf(error)}`);
  }
  return damage;
}

/** The worst of it. */
async function findDamage(session: ServedSession): Promise<ChunkmountError | undefined> {
  const { name, state, journal, reporter } = session;
  const directory = state.session(name);
  const record = readSessionRecord(directory);
  if (record === undefined) return undefined;
  const { lost, unknown } = await inspectSnapshots(journal);
  if (lost.length + unknown.length > 0) {
    // What was hashed may not be what was frozen: the next session cannot go on from it.
    for (const { target } of record.disks) removeTracking(state.index(name), target);
  }
  const status = readStatus(directory);
  // The next cleanup may not be able to look again, so what cannot be told now counts as damage, too.
  const found = [...lost, ...treeDamage(name, directory, { status, journal }), ...unknown];
  for (const { message } of unknown.filter((one) => one !== found[0])) reporter.warn(message);
  return found[0] ?? unsavedIndex(name, status);
}

/** Then the daemon cannot have told how it ended. */
function isFull(directory: string): boolean {
  return fs.statfsSync(directory).bavail === 0;
}

/** Whether the daemon ended while somebody may have read the tree, and no cleanup had taken the tree away before. */
function hasDied(status: DaemonStatus, journal: Journal): boolean {
  if (status.state === 'serving') return true;
  const entry = journal.find(SERVE);
  return status.state === 'stopped' && (entry === undefined || !isStoppedByUs(entry));
}

/** What the daemon says was wrong with the tree, or that it cannot have said it. */
function treeDamage(
  name: string,
  directory: string,
  { status, journal }: { readonly status: DaemonStatus | undefined; readonly journal: Journal },
): ChunkmountError[] {
  if (status === undefined || hasDied(status, journal)) {
    const room = isFull(directory) ? `no space is left in ${directory}: make room, and ` : '';
    const what = 'what was copied is not a whole backup';
    const hint = `all is cleaned up; ${room}back it up again`;
    return [failed(`the daemon of ${name} died before its tree was unmounted: ${what}`, { hint })];
  }
  const [lost] = status.lost ?? [];
  if (lost !== undefined) {
    return [failed(`the backup of ${name} is not whole: ${lost}`, { hint: 'back it up again' })];
  }
  const { unreadable } = status.scan;
  const { ioErrors } = status.counters;
  if (unreadable === 0 && ioErrors === 0) return [];
  return [
    failed(`the backup of ${name} is not whole: some of its chunks could not be read`, {
      hint: 'look for disk errors (dmesg) or a snapshot that ran full, and back it up again',
      details: { unreadable, ioErrors },
    }),
  ];
}

/** The tree was whole, but what was found out about it is not kept. */
function unsavedIndex(name: string, status: DaemonStatus | undefined): ChunkmountError | undefined {
  if (status?.error === undefined && status?.state !== 'failed') return undefined;
  return failed(status.error ?? `the daemon of ${name} failed`, {
    hint: 'the backup is good, but the next one may send chunks again that did not change',
  });
}
