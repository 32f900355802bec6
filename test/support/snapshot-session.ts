import * as fs from 'node:fs';
import * as path from 'node:path';
import type { Domain } from '../../src/libvirt/domain.js';
import { loadDomain } from '../../src/libvirt/load-domain.js';
import type { Virsh } from '../../src/libvirt/virsh.js';
import { type Reporter, silentReporter } from '../../src/report/reporter.js';
import { Journal } from '../../src/session/journal.js';
import { type UndoContext, undoAll } from '../../src/session/undo.js';
import type { Snapshot, SnapshotOptions, SnapshotProvider } from '../../src/snapshot/provider.js';
import { snapshotUndo } from '../../src/snapshot/select.js';
import { DyingJournal } from './dying-journal.js';

/** A reporter that keeps what it is told. */
export class RecordingReporter implements Reporter {
  readonly messages: string[] = [];

  debug(message: string): void {
    this.messages.push(`debug: ${message}`);
  }

  notice(message: string): void {
    this.messages.push(`notice: ${message}`);
  }

  warn(message: string): void {
    this.messages.push(`warn: ${message}`);
  }

  progress(label: string) {
    this.messages.push(`progress: ${label}`);
    return silentReporter.progress(label, 0);
  }
}

export type FreezeOptions = Partial<SnapshotOptions> & {
  targets?: readonly string[];
  signal?: AbortSignal;
};

/** Which record of its journal a process dies at: after it was written, or `before`. */
export interface Death {
  readonly records: number;
  readonly before?: boolean;
}

/** A session of one VM: its journal, and what a command does with a provider. */
export class SnapshotSession {
  readonly reporter = new RecordingReporter();
  #journal: Journal;

  constructor(
    readonly virsh: Virsh,
    readonly directory: string,
    readonly id: string,
  ) {
    fs.mkdirSync(directory, { recursive: true });
    this.#journal = new Journal(path.join(directory, 'journal.jsonl'));
  }

  get journal(): Journal {
    return this.#journal;
  }

  /** The journal as another process would find it. */
  reopen(): Journal {
    this.#journal.close();
    this.#journal = new Journal(this.#journal.file);
    return this.#journal;
  }

  async freeze(
    provider: SnapshotProvider,
    domainName: string,
    options: FreezeOptions = {},
    journal: Journal = this.#journal,
  ): Promise<Snapshot> {
    const domain: Domain = await loadDomain(this.virsh, domainName);
    const { targets, signal, ...others } = options;
    const disks = domain.disks.filter(({ target, device }) => targets?.includes(target) ?? device === 'disk');
    return provider.freeze({
      virsh: this.virsh.withSignal(signal),
      domain,
      disks,
      sessionId: this.id,
      options: { quiesce: 'no', ...others },
      journal,
      reporter: this.reporter,
      signal,
    });
  }

  /** Freezes as in a process that dies. Returns whether it died before it had finished. */
  async dyingFreeze(
    provider: SnapshotProvider,
    domainName: string,
    { records, before }: Death,
    options: FreezeOptions = {},
  ): Promise<boolean> {
    const journal = new DyingJournal(this.#journal.file, records, before);
    try {
      await this.freeze(provider, domainName, options, journal);
      return false;
    } catch (error) {
      if (!journal.died) throw error;
      return true;
    } finally {
      journal.close();
    }
  }

  /** The same of a cleanup. */
  async dyingUndo({ records, before }: Death): Promise<boolean> {
    const journal = new DyingJournal(this.#journal.file, records, before);
    try {
      await undoAll({ journal, reporter: this.reporter }, snapshotUndo, new Set());
      return journal.died;
    } finally {
      journal.close();
    }
  }

  /** Cleanup from a new process: returns what went wrong. */
  async undo(more: Partial<UndoContext> = {}): Promise<Error[]> {
    const context = { journal: this.reopen(), reporter: this.reporter, ...more };
    return undoAll(context, snapshotUndo, new Set());
  }
}
