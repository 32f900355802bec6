import * as fs from 'node:fs';
import * as path from 'node:path';
import * as v from 'valibot';
import { isName } from '../chunks/names.js';
import { ChunkmountError, failed, messageOf, systemCode, usage } from '../errors.js';
import { fsyncDirectory, makeDirectory } from '../host/durable.js';
import { Journal, readPending } from '../session/journal.js';
import { Lock } from '../session/lock.js';
import type { StateDirectory } from '../session/state-directory.js';
import type { UndoHandler } from '../session/undo.js';

/** Journal kind of a boot's first record: what it is. */
export const BOOT = 'boot';

const Schema = v.object({
  name: v.string(),
  uuid: v.string(),
  /** As for `virsh --connect`. */
  connect: v.optional(v.string()),
  /** Absolute, as all paths. */
  tree: v.string(),
  mountpoint: v.string(),
  begun: v.string(),
  disks: v.array(
    v.object({
      target: v.string(),
      overlay: v.string(),
      /** The disk's file in the mount. */
      image: v.string(),
      /** Which disk of which backup: see identifyDisk. */
      source: v.string(),
    }),
  ),
});

/** A VM that runs on overlays over the images of a tree. */
export type BootRecord = Readonly<v.InferOutput<typeof Schema>>;

/** The record says what the others are for; it changed nothing. */
const undoBoot: UndoHandler = async () => {};

export const bootUndo = { [BOOT]: undoBoot };

/** Where the boots are in a state directory. */
class BootPlaces {
  readonly #root: string;

  constructor(state: StateDirectory) {
    this.#root = path.join(state.root, 'boots');
  }

  get locks(): string {
    return path.join(this.#root, '.locks');
  }

  /** Exists as long as there is anything to finish or discard. */
  directory(name: string): string {
    return path.join(this.#root, name);
  }

  names(): string[] {
    try {
      return fs.readdirSync(this.#root).filter(isName).sort();
    } catch (error) {
      // Something above it may be a file, of which whoever makes directories complains.
      if (['ENOENT', 'ENOTDIR'].includes(systemCode(error) ?? '')) return [];
      throw error;
    }
  }
}

/** A boot that this process works on; nobody else does meanwhile. */
export interface OpenBoot {
  readonly journal: Journal;
  readonly directory: string;
  /** Damage that readers of the images ran into. */
  readonly log: string;
  /** Undefined if it was cut off before it did anything. */
  readonly record: BootRecord | undefined;
  /** Forgets it. */
  remove(): void;
}

function recordIn(pending: ReturnType<typeof readPending>): BootRecord | undefined {
  const entry = pending.find(({ kind }) => kind === BOOT);
  return entry === undefined ? undefined : v.parse(Schema, entry.data);
}

/**
 * Locks a boot and opens its journal while `use` works. `create`: it must not exist yet; else it must. Throws kind `locked` when
 * another command has it, or when it exists and should not; a usage error when it should exist and does not.
 */
export async function withBoot<T>(
  state: StateDirectory,
  name: string,
  options: { readonly create: boolean },
  use: (boot: OpenBoot) => Promise<T>,
): Promise<T> {
  const places = new BootPlaces(state);
  const directory = places.directory(name);
  if (!options.create && !places.names().includes(name)) {
    throw usage(`there is no boot called ${JSON.stringify(name)}`, {
      hint: 'see them all: chunkmount boot --list',
    });
  }
  const lock = await Lock.acquire(places.locks, name, { command: 'boot' });
  try {
    if (options.create) create(name, directory);
    else if (!fs.existsSync(directory)) throw failed(`the boot ${name} was ended by another command`);
    const journal = openJournal(directory, options.create);
    try {
      const remove = () => {
        fs.rmSync(directory, { recursive: true, force: true });
        fsyncDirectory(path.dirname(directory));
      };
      const log = path.join(directory, 'images.log');
      return await use({ journal, directory, log, record: recordIn(journal.pending()), remove });
    } finally {
      journal.close();
    }
  } finally {
    lock.release();
  }
}

/** A directory without a journal would be a boot that nothing is known of. */
function openJournal(directory: string, isNew: boolean): Journal {
  try {
    return new Journal(path.join(directory, 'journal.jsonl'));
  } catch (error) {
    if (isNew) fs.rmSync(directory, { recursive: true, force: true });
    throw error;
  }
}

function create(name: string, directory: string): void {
  if (fs.existsSync(directory)) {
    throw new ChunkmountError('locked', `${name} has been booted from a tree already`, {
      hint: `end that first: chunkmount boot --discard ${name} (or --finish ${name}), or give another --name`,
    });
  }
  makeDirectory(directory);
}

export interface BootSummary {
  readonly name: string;
  readonly tree: string | null;
  readonly begun: string | null;
  /** Why nothing more is known of it, as a sentence. */
  readonly problem: string | null;
}

/** All boots that are neither finished nor discarded. Does not wait for those that are being worked on. */
export function listBoots(state: StateDirectory): BootSummary[] {
  const places = new BootPlaces(state);
  return places.names().map((name) => {
    const journal = path.join(places.directory(name), 'journal.jsonl');
    try {
      const record = fs.existsSync(journal) ? recordIn(readPending(journal)) : undefined;
      return { name, tree: record?.tree ?? null, begun: record?.begun ?? null, problem: null };
    } catch (error) {
      return { name, tree: null, begun: null, problem: messageOf(error) };
    }
  });
}
