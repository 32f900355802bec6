import * as fs from 'node:fs';
import * as path from 'node:path';
import { systemCode } from '../errors.js';

/** What lies where in the state directory. */
export class StateDirectory {
  constructor(readonly root: string) {}

  /** The one that a session's journal lies in, or one of what is kept; undefined if it lies elsewhere. */
  static ofJournal(file: string): StateDirectory | undefined {
    const directory = path.dirname(path.resolve(file));
    const state = new StateDirectory(path.resolve(directory, '../..'));
    const name = path.basename(directory);
    const places = [state.journal(name), state.keptJournal(name)].map((place) => path.resolve(place));
    return places.includes(path.resolve(file)) ? state : undefined;
  }

  get locks(): string {
    return path.join(this.root, 'locks');
  }

  /** Of one session: journal, configuration and logs. Exists as long as there is anything to undo. */
  session(name: string): string {
    return path.join(this.root, 'sessions', name);
  }

  journal(name: string): string {
    return path.join(this.session(name), 'journal.jsonl');
  }

  /** Journal of the snapshots that were kept when their session ended. Exists as long as there are any. */
  keptJournal(name: string): string {
    return path.join(this.root, 'kept', name, 'journal.jsonl');
  }

  /** What outlives sessions: the chunk indexes of a tree. */
  index(name: string): string {
    return path.join(this.root, 'index', name);
  }

  /** Names of all sessions, sorted. */
  sessions(): string[] {
    return this.#names('sessions');
  }

  /** Names of all that have kept snapshots, sorted. */
  kept(): string[] {
    return this.#names('kept');
  }

  #names(part: string): string[] {
    try {
      const entries = fs.readdirSync(path.join(this.root, part), { withFileTypes: true });
      // Each of ours is a directory: a file there is somebody else's.
      return entries.flatMap((entry) => (entry.isFile() ? [] : [entry.name])).sort();
    } catch (error) {
      // Something above it may be a file, of which whoever makes directories complains.
      if (['ENOENT', 'ENOTDIR'].includes(systemCode(error) ?? '')) return [];
      throw error;
    }
  }
}
