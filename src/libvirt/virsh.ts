import * as fs from 'node:fs';
import * as v from 'valibot';
import { ChunkmountError, failed, messageOf, usage } from '../errors.js';
import { CommandError } from '../host/command-error.js';
import { run } from '../host/exec.js';
import { anonymousFile } from './anonymous-file.js';
import type { DomainState } from './domain.js';
import { askShell, startShell } from './virsh-shell.js';

/** What asks libvirt a question answers in milliseconds; a libvirtd that needs longer than this hangs. */
const QUERY_TIMEOUT_MS = 30_000;
const ANSWER_TIMEOUT_MS = 3_000;
/** For what changes something: a busy domain makes libvirt wait 30 s for its job lock first. */
const CHANGE_TIMEOUT_MS = 90_000;

export interface VirshOptions {
  /** As for `virsh --connect`; libvirt's default if undefined. */
  readonly connect?: string | undefined;
  readonly signal?: AbortSignal | undefined;
}

export interface DomainName {
  readonly uuid: string;
  readonly name: string;
}

export interface StateAndReason {
  readonly state: DomainState;
  /** Number within the state, as in libvirt's virDomain…Reason enumerations. */
  readonly reason: number;
}

/** virDomainPausedReason: the guest was stopped because a write to one of its disks failed. */
export const PAUSED_BY_IO_ERROR = 5;

/** A job on one disk. Units are the job's own (bytes, mostly): only their ratio says something. */
export interface BlockJob {
  readonly type: string;
  readonly done: number;
  readonly total: number;
  /** Its limit, 0 if there is none. */
  readonly bandwidth: number;
}

/** virDomainJobOperation: VIR_DOMAIN_JOB_OPERATION_SNAPSHOT and _BACKUP. */
const SNAPSHOT_OPERATION = 6;
const BACKUP_OPERATION = 9;

export interface DomainJob {
  /** Of libvirt's own, begun with `backup-begin`. */
  readonly isBackup: boolean;
  /** A snapshot is being made, with memory: without, it takes no time in which to ask. */
  readonly isSnapshot: boolean;
}

export interface SnapshotFlags {
  /** The XML asks for the guest's memory, too: the guest goes on while most of it is written. */
  readonly memory?: boolean;
  /** Freeze the guest's file systems through its agent. */
  readonly quiesce?: boolean;
  readonly timeoutMs?: number;
}

/** virDomainState, by number. */
const STATES: readonly DomainState[] = [
  'other',
  'running',
  'other',
  'paused',
  'in shutdown',
  'shut off',
  'crashed',
  'pmsuspended',
];

const UUID_LENGTH = 36;

/** Which domains `list` is to name. `active`: those that a QEMU process runs. */
export type DomainKind = 'all' | 'active' | 'persistent' | 'managed save';

const LIST_OPTIONS: Readonly<Record<DomainKind, readonly string[]>> = {
  all: ['--all'],
  active: [],
  persistent: ['--all', '--persistent'],
  'managed save': ['--all', '--with-managed-save'],
};

/** `key=value` lines, as `domstats`, `blockjob --raw` and `domjobinfo --rawstats` print them. */
function parseFields(text: string, separator: string): Map<string, string> {
  const fields = new Map<string, string>();
  for (const line of text.split('\n')) {
    const at = line.indexOf(separator);
    if (at > 0) fields.set(line.slice(0, at).trim(), line.slice(at + separator.length).trim());
  }
  return fields;
}

function numberIn(fields: ReadonlyMap<string, string>, key: string): number {
  const text = fields.get(key);
  const value = Number(text);
  if (text === undefined || text === '' || !Number.isFinite(value))
    throw failed(`virsh did not say what ${key} is`);
  return value;
}

function hostOf(options: VirshOptions): string {
  return options.connect === undefined ? 'libvirt' : `libvirt at ${options.connect}`;
}

/** virsh reads XML from files only, and cannot open the socket that Node gives a child as its stdin. */
export const INPUT_FILE = '/proc/self/fd/3';
/** The second of two. */
export const SECOND_INPUT_FILE = '/proc/self/fd/4';

/**
 * Whether libvirt said no, in `error` or in what caused it. Without an exit code virsh was ended, by us or by others, and libvirt
 * may still be at it.
 */
export function isAnswer(error: unknown): boolean {
  if (error instanceof CommandError) return error.exitCode !== undefined;
  return error instanceof ChunkmountError && error.cause instanceof CommandError && isAnswer(error.cause);
}

const agentAnswer = v.object({ return: v.unknown() });

/**
 * virsh, one method a call. Domains are named by UUID, because virsh takes a name that looks like a number for an id.
 * Every call has a time limit and ends when `signal` is aborted. Each throws CommandError with what virsh said.
 */
export class Virsh {
  constructor(readonly options: VirshOptions = {}) {}

  /** The same connection, for work that must go on after (or end with) another signal. */
  withSignal(signal: AbortSignal | undefined): Virsh {
    return new Virsh({ ...this.options, signal });
  }

  /** Runs `virsh COMMAND ARGS` and returns what it printed. Descriptors of ours are `INPUT_FILE` and the next to it. */
  async call(
    command: string,
    args: readonly string[],
    timeoutMs = QUERY_TIMEOUT_MS,
    descriptors: readonly number[] = [],
  ): Promise<string> {
    const { connect, signal } = this.options;
    const target = connect === undefined ? [] : ['--connect', connect];
    const all = ['--quiet', ...target, command, ...args];
    return (await run('virsh', all, { timeoutMs, signal, descriptors, called: `virsh ${command}` })).stdout;
  }

  /** To be called when questions are coming: what they are asked of takes a moment to start. */
  expectQuestions(): void {
    startShell(this.options);
  }

  /** As `call`, for a command by which nothing changes: mostly in a millisecond, of a virsh that is kept for all questions. */
  async ask(command: string, args: readonly string[]): Promise<string> {
    return (await askShell([command, ...args], this.options)) ?? (await this.call(command, args));
  }

  /** The domains of a kind. Throws with a hint when libvirt cannot be reached. */
  async list(kind: DomainKind = 'all'): Promise<DomainName[]> {
    let text: string;
    try {
      text = await this.ask('list', [...LIST_OPTIONS[kind], '--uuid', '--name']);
    } catch (error) {
      // Listing needs nothing but the connection, so that is what failed.
      if (!isAnswer(error)) throw error;
      throw failed(`${hostOf(this.options)} cannot be reached: ${messageOf(error)}`, {
        hint: 'is libvirtd running (systemctl status libvirtd)? --connect=URI names another libvirt',
        cause: error,
      });
    }
    const lines = text.split('\n').filter((line) => line.trim() !== '');
    return lines.map((line) => ({ uuid: line.slice(0, UUID_LENGTH), name: line.slice(UUID_LENGTH + 1) }));
  }

  /** Finds a domain by name. Throws a usage error if there is none. */
  async find(name: string): Promise<DomainName> {
    const domains = await this.list();
    const found = domains.find((domain) => domain.name === name);
    if (found !== undefined) return found;
    throw usage(`there is no VM called ${JSON.stringify(name)}`, {
      hint: `see them all: virsh ${this.options.connect === undefined ? '' : `--connect '${this.options.connect}' `}list --all`,
    });
  }

  async isPersistent(uuid: string): Promise<boolean> {
    return (await this.list('persistent')).some((domain) => domain.uuid === uuid);
  }

  /** Whether the domain's memory was saved by `virsh managedsave`, so that a start continues from there. */
  async hasManagedSave(uuid: string): Promise<boolean> {
    return (await this.list('managed save')).some((domain) => domain.uuid === uuid);
  }

  async state(uuid: string): Promise<StateAndReason> {
    const fields = parseFields(await this.ask('domstats', ['--state', '--nowait', '--domain', uuid]), '=');
    return {
      state: STATES[numberIn(fields, 'state.state')] ?? 'other',
      reason: numberIn(fields, 'state.reason'),
    };
  }

  /** The XML as it runs now, or with `inactive` as it will be at the next start. */
  dumpXml(uuid: string, options: { inactive?: boolean } = {}): Promise<string> {
    return this.ask('dumpxml', ['--domain', uuid, ...(options.inactive === true ? ['--inactive'] : [])]);
  }

  /** The whole definition, its secrets too, as `define` wants it back. */
  definition(uuid: string): Promise<string> {
    return this.ask('dumpxml', ['--domain', uuid, '--inactive', '--security-info']);
  }

  async define(xml: string): Promise<void> {
    await this.callWith([xml], 'define', ['--file', INPUT_FILE, '--validate']);
  }

  /** One atomic snapshot without metadata, exactly as `xml` says. */
  async snapshotCreate(uuid: string, xml: string, flags: SnapshotFlags = {}): Promise<void> {
    const what = flags.memory === true ? '--live' : '--disk-only';
    const args = ['--domain', uuid, '--xmlfile', INPUT_FILE, what, '--atomic', '--no-metadata', '--validate'];
    const quiesce = flags.quiesce === true ? ['--quiesce'] : [];
    await this.callWith([xml], 'snapshot-create', [...args, ...quiesce], flags.timeoutMs);
  }

  /**
   * Starts merging `top` into `base` and returns. Both are always given: without a base the whole chain would go.
   * `active`: `top` is what the guest writes to, and the job becomes ready instead of ending.
   */
  async blockCommit(
    uuid: string,
    target: string,
    merge: { base: string; top: string; active: boolean },
  ): Promise<void> {
    const layers = ['--base', merge.base, '--top', merge.top, ...(merge.active ? ['--active'] : [])];
    await this.call('blockcommit', ['--domain', uuid, '--path', target, ...layers], CHANGE_TIMEOUT_MS);
  }

  /** The job on a disk, undefined if there is none. */
  async blockJob(uuid: string, target: string): Promise<BlockJob | undefined> {
    const fields = parseFields(
      await this.ask('blockjob', ['--domain', uuid, '--path', target, '--info', '--raw']),
      '=',
    );
    const type = fields.get('type');
    if (type === undefined) return undefined;
    return {
      type,
      done: numberIn(fields, 'cur'),
      total: numberIn(fields, 'end'),
      bandwidth: numberIn(fields, 'bandwidth'),
    };
  }

  /** Lifts the bandwidth limit of the job on a disk. */
  async blockJobUnlimited(uuid: string, target: string): Promise<void> {
    await this.call('blockjob', ['--domain', uuid, '--path', target, '--bandwidth', '0'], CHANGE_TIMEOUT_MS);
  }

  /** Ends a ready job by making the merged layer the one that the guest writes to. */
  async blockJobPivot(uuid: string, target: string): Promise<void> {
    await this.call('blockjob', ['--domain', uuid, '--path', target, '--pivot'], CHANGE_TIMEOUT_MS);
  }

  /** Whether a job works on the domain as a whole: migration, save, dump, backup. */
  async hasDomainJob(uuid: string): Promise<boolean> {
    return (await this.domainJob(uuid)) !== undefined;
  }

  /** The job that works on a running domain as a whole, undefined if there is none. */
  async domainJob(uuid: string): Promise<DomainJob | undefined> {
    const fields = parseFields(await this.ask('domjobinfo', ['--domain', uuid, '--rawstats']), ':');
    if (numberIn(fields, 'Job type') === 0) return undefined;
    const operation = Number(fields.get('operation'));
    return { isBackup: operation === BACKUP_OPERATION, isSnapshot: operation === SNAPSHOT_OPERATION };
  }

  /** Size of a running domain's disk, as the guest sees it, in bytes. */
  async diskSize(uuid: string, target: string): Promise<number> {
    const text = await this.ask('domblkinfo', ['--domain', uuid, '--device', target]);
    return numberIn(parseFields(text, ':'), 'Capacity');
  }

  /** Whether libvirt answers a question about a running domain's disk at once: not while it changes the domain. */
  async answersAbout(uuid: string, target: string): Promise<boolean> {
    try {
      await this.call('domblkinfo', ['--domain', uuid, '--device', target], ANSWER_TIMEOUT_MS);
      return true;
    } catch (error) {
      if (error instanceof CommandError && this.options.signal?.aborted !== true)
        return !(await this.#isActive(uuid));
      throw error;
    }
  }

  async #isActive(uuid: string): Promise<boolean> {
    return (await this.list('active')).some((domain) => domain.uuid === uuid);
  }

  /** Ends the job that works on the domain as a whole. */
  async abortDomainJob(uuid: string): Promise<void> {
    await this.call('domjobabort', ['--domain', uuid], CHANGE_TIMEOUT_MS);
  }

  /** Asks the guest to shut down; returns at once. */
  async shutdown(uuid: string): Promise<void> {
    await this.call('shutdown', ['--domain', uuid], CHANGE_TIMEOUT_MS);
  }

  async start(uuid: string, options: { paused?: boolean } = {}): Promise<void> {
    await this.call(
      'start',
      ['--domain', uuid, ...(options.paused === true ? ['--paused'] : [])],
      CHANGE_TIMEOUT_MS,
    );
  }

  async suspend(uuid: string): Promise<void> {
    await this.call('suspend', ['--domain', uuid], CHANGE_TIMEOUT_MS);
  }

  async resume(uuid: string): Promise<void> {
    await this.call('resume', ['--domain', uuid], CHANGE_TIMEOUT_MS);
  }

  /** Where a volume of a storage pool lies; undefined if there is none, or its pool is not active. */
  async volumePath(pool: string, volume: string): Promise<string | undefined> {
    try {
      return (await this.ask('vol-path', ['--pool', pool, '--vol', volume])).trimEnd();
    } catch (error) {
      if (error instanceof CommandError && error.exitCode !== undefined) return undefined;
      throw error;
    }
  }

  /** Bounds how long libvirt waits for the guest's agent, in all its calls. */
  async agentTimeout(uuid: string, seconds: number): Promise<void> {
    await this.call(
      'guest-agent-timeout',
      ['--domain', uuid, '--timeout', String(seconds)],
      CHANGE_TIMEOUT_MS,
    );
  }

  /** Sends a command without arguments to the guest's agent; returns its answer. Throws when none comes in time. */
  async agentCommand(uuid: string, command: string, timeoutSeconds: number): Promise<unknown> {
    const request = JSON.stringify({ execute: command });
    const args = ['--domain', uuid, '--timeout', String(timeoutSeconds), '--cmd', request];
    const answer = await this.call('qemu-agent-command', args, (timeoutSeconds + 10) * 1000);
    return v.parse(agentAnswer, JSON.parse(answer)).return;
  }

  /** Freezes the guest's file systems. Throws when the agent does not answer in time; the freeze may still come then. */
  async freeze(uuid: string): Promise<void> {
    await this.call('domfsfreeze', ['--domain', uuid], CHANGE_TIMEOUT_MS);
  }

  /** Thaws the guest's file systems. */
  async thaw(uuid: string): Promise<void> {
    await this.call('domfsthaw', ['--domain', uuid], CHANGE_TIMEOUT_MS);
  }

  /** Runs a command that reads one text as `INPUT_FILE`, a second one as `SECOND_INPUT_FILE`. */
  async callWith(
    texts: readonly string[],
    command: string,
    args: readonly string[],
    timeoutMs = CHANGE_TIMEOUT_MS,
  ): Promise<void> {
    const open: number[] = [];
    try {
      for (const text of texts) open.push(anonymousFile(text));
      await this.call(command, args, timeoutMs, open);
    } finally {
      for (const fd of open) fs.closeSync(fd);
    }
  }
}
