import * as fs from 'node:fs';
import * as path from 'node:path';
import { ChunkmountError, failed, messageOf } from '../errors.js';
import { type StartedDaemon, spawnDaemon } from '../host/exec.js';
import { mountAt, mountpointsOf } from '../host/mountinfo.js';
import type { Politeness } from '../host/politeness.js';
import { identify, type ProcessIdentity } from '../host/process-identity.js';
import type { DaemonMessage, DaemonOrder } from './daemon-process.js';
import { mountDevice, openDevice, raiseReadAhead } from './kernel/mount.js';
import type { TransportKind } from './transport.js';

/** From the order to begin. Normally it takes 0.2 s. One that has to open large indexes on a busy disk, or on a host without a free processor, may take a while. */
const READY_TIMEOUT_MS = 180_000;

export interface DaemonRequest {
  /** A program of ours that calls `runDaemon`, and its arguments. */
  readonly script: string;
  readonly args: readonly string[];
  readonly logFile: string;
  readonly politeness?: Politeness | undefined;
  readonly transport: TransportKind;
}

export interface MountRequest {
  readonly mountpoint: string;
  /** See ServeOptions. */
  readonly source: string;
  readonly allowOther: boolean;
  /** Bytes that readers will mostly want at once. */
  readonly readAhead: number;
  readonly signal?: AbortSignal | undefined;
  /** Called before it does anything to the host. */
  onBegin?(daemon: ProcessIdentity | undefined): void;
}

/**
 * A daemon's process. From its start it gets ready, which takes as long as the work of whoever starts it beside that; it does nothing to
 * the host before `mount`, and ends with us or with `drop`.
 */
export class WaitingDaemon {
  #device: number | undefined;
  #answered = false;

  private constructor(
    private readonly daemon: StartedDaemon,
    device: number | undefined,
  ) {
    this.#device = device;
  }

  static async start({
    script,
    args,
    logFile,
    politeness,
    transport,
  }: DaemonRequest): Promise<WaitingDaemon> {
    const device = transport === 'kernel' ? openDevice() : undefined;
    try {
      const descriptors = device === undefined ? [] : [device];
      const daemon = await spawnDaemon(script, args, { logFile, politeness, descriptors });
      daemon.tell({ kind: 'prepare', transport } satisfies DaemonOrder);
      return new WaitingDaemon(daemon, device);
    } catch (error) {
      if (device !== undefined) fs.closeSync(device);
      throw error;
    }
  }

  /**
   * Has it begin, and mounts what it serves. Returns its warnings once the mount answers. When this throws, process and mount may be
   * there or not: the caller looks and undoes.
   */
  async mount(request: MountRequest): Promise<readonly string[]> {
    const { mountpoint, source, allowOther, signal } = request;
    let message: DaemonMessage;
    try {
      request.onBegin?.(identify(this.daemon.pid));
      this.daemon.tell({ kind: 'begin' } satisfies DaemonOrder);
      if (this.#device !== undefined)
        await mountDevice(this.#device, { mountpoint, source, allowOther, signal });
      message = (await this.daemon.answer(READY_TIMEOUT_MS)) as DaemonMessage;
      this.#answered = true;
    } finally {
      this.#closeDevice();
    }
    if (message.kind === 'failed') {
      const { error, message: sentence, hint } = message;
      throw new ChunkmountError(error, sentence, { hint });
    }
    raiseReadAhead(mountpoint, request.readAhead);
    await checkAnswers(mountpoint, source);
    return message.warnings;
  }

  /** Ends it, unless it serves. */
  drop(): void {
    this.#closeDevice();
    // It would notice when it is let go, but may not have got that far.
    if (!this.#answered) this.daemon.kill();
    this.daemon.letGo();
  }

  /** The connection must end with the daemon, so nobody else may hold it. */
  #closeDevice(): void {
    if (this.#device !== undefined) fs.closeSync(this.#device);
    this.#device = undefined;
  }
}

/** statfs is never answered from a cache. */
async function checkAnswers(mountpoint: string, source: string): Promise<void> {
  if (mountAt(mountpoint)?.source !== source) {
    const [elsewhere] = mountpointsOf(source);
    const where = elsewhere === undefined ? '' : `: a symbolic link led it to ${elsewhere}`;
    throw failed(`${mountpoint} is not mounted although mount said so${where}`, {
      hint: `see who else may write in ${path.dirname(mountpoint)}`,
    });
  }
  try {
    await fs.promises.statfs(mountpoint);
  } catch (error) {
    throw failed(`the mount at ${mountpoint} does not answer: ${messageOf(error)}`, { cause: error });
  }
}
