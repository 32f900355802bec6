import * as fs from 'node:fs';
import * as v from 'valibot';
import { ChunkmountError, failed, messageOf } from '../errors.js';
import { CommandError } from '../host/command-error.js';
import { run } from '../host/exec.js';
import { shellWord } from '../host/shell-word.js';
import { isWrittenByQemu } from '../image/image-lock.js';
import { countSnapshots } from '../image/qcow2-snapshots.js';
import { beginBlockPull } from '../libvirt/domain-lifecycle.js';
import { loadDescription } from '../libvirt/load-domain.js';
import type { Virsh } from '../libvirt/virsh.js';
import type { Reporter } from '../report/reporter.js';
import { areImagesThere } from './boot-mount.js';
import type { BootRecord } from './boot-state.js';
import { interrupted } from './restore-request.js';

const FIRST_POLL_MS = 50;
const LAST_POLL_MS = 1_000;

/** A VM that stops or starts while its disk is pulled makes another way the right one. */
const MAX_CHANGES_OF_WAY = 3;

/** A disk of 100 TB from slow storage: a bound for qemu-img that hangs. */
const REBASE_TIMEOUT_MS = 7 * 24 * 3_600_000;
const SECTOR_BYTES = 512;

export type BootDisk = BootRecord['disks'][number];

export interface PullRequest {
  readonly record: BootRecord;
  readonly virsh: Virsh;
  readonly reporter: Reporter;
  readonly signal: AbortSignal;
  /** Makes sure that the images can be read, while the VM is off. */
  readonly showImages: () => Promise<void>;
  /** What readers of the images ran into, if anything. */
  readonly damage: () => string | undefined;
}

const infoSchema = v.object({ 'backing-filename': v.optional(v.string()) });

/** Whether an overlay still needs what lies below it. -U: a VM may be writing to it; only its header is looked at. */
export async function needsBase(overlay: string): Promise<boolean> {
  const { stdout } = await run('qemu-img', ['info', '-U', '-f', 'qcow2', '--output=json', overlay]);
  return v.parse(infoSchema, JSON.parse(stdout))['backing-filename'] !== undefined;
}

/** Where the VM has the disk now; `active`: a QEMU process has it open. */
async function look({ virsh, record }: PullRequest, disk: BootDisk): Promise<{ active: boolean }> {
  const { name, uuid } = record;
  const { active, disks } = await loadDescription(virsh, uuid);
  const found = disks.find(({ target }) => target === disk.target);
  if (found === undefined || found.path === disk.overlay) return { active: active && found !== undefined };
  throw failed(`disk ${disk.target} of ${name} is on ${found.path ?? 'no file'}, not on ${disk.overlay}`, {
    hint: 'end the backup or merge the snapshot that lies on it, then finish again',
  });
}

/** QEMU copies for the disk as it is now; a state of it that is kept inside the overlay would have zeros where it had the backup. */
function refuseSnapshots({ record: { name } }: PullRequest, { target, overlay }: BootDisk): void {
  const count = countSnapshots(overlay);
  if (count === 0) return;
  throw failed(
    `${overlay}, disk ${target} of ${name}, has snapshots inside (${count}) that need the backup`,
    {
      hint: `delete them (virsh snapshot-list ${name}, virsh snapshot-delete), or go back to one and delete it, then finish again`,
    },
  );
}

/** Shows how far something has come whose total may grow. */
class PullProgress {
  readonly #task;
  #done = 0;

  constructor(reporter: Reporter, label: string, total: number) {
    this.#task = reporter.progress(label, total);
  }

  reach(done: number): void {
    if (done > this.#done) this.#task.advance(done - this.#done);
    this.#done = Math.max(done, this.#done);
  }

  end(): void {
    this.#task.end();
  }
}

/** Copies through QEMU while the VM runs. Returns when the job has ended, however that was. */
async function pullLive(request: PullRequest, { target }: BootDisk): Promise<void> {
  const { virsh, record, reporter, signal } = request;
  const { uuid, name, mountpoint } = record;
  if (!areImagesThere(mountpoint)) {
    throw failed(`the images at ${mountpoint} are gone, and QEMU cannot get them back`, {
      hint: `shut ${name} off (virsh destroy ${name}), then finish it again`,
    });
  }
  let job = await virsh.blockJob(uuid, target);
  if (job === undefined) {
    await beginBlockPull(virsh, uuid, target);
    job = await virsh.blockJob(uuid, target);
  }
  if (job === undefined) return;
  const progress = new PullProgress(reporter, `copying ${name} ${target}`, job.total);
  try {
    for (let delay = FIRST_POLL_MS; job !== undefined; delay = Math.min(delay * 1.5, LAST_POLL_MS)) {
      progress.reach(job.done);
      await new Promise((resolve) => setTimeout(resolve, delay));
      if (signal.aborted)
        throw interrupted(target, `QEMU goes on; to wait for it: chunkmount boot --finish ${name}`);
      job = await virsh.blockJob(uuid, target);
    }
  } finally {
    progress.end();
  }
}

function allocated(file: string): number {
  return fs.statSync(file).blocks * SECTOR_BYTES;
}

/** Of a command that was killed, qemu-img lives on. Returns false when it is the VM that writes. */
async function waitForWriters(request: PullRequest, disk: BootDisk): Promise<boolean> {
  const { reporter, signal } = request;
  for (let told = false; await isWrittenByQemu(disk.overlay); told = true) {
    if ((await look(request, disk)).active) return false;
    if (!told) reporter.notice(`${disk.overlay} is being written by another program; waiting for it`);
    await new Promise((resolve) => setTimeout(resolve, LAST_POLL_MS));
    if (signal.aborted) throw interrupted(disk.target, 'run the same command again');
  }
  return true;
}

/** Copies while the VM is off; qemu-img's lock on the overlay keeps it from being started meanwhile. */
async function pullOffline(request: PullRequest, disk: BootDisk): Promise<void> {
  const { record, reporter, signal, showImages } = request;
  const { target, overlay, image } = disk;
  if (!(await waitForWriters(request, disk)) || !(await needsBase(overlay))) return;
  await showImages();
  const before = allocated(overlay);
  const total = allocated(image);
  const progress = new PullProgress(reporter, `copying ${record.name} ${target}`, total);
  const tick = () => progress.reach(Math.min(Math.max(0, allocated(overlay) - before), total));
  const timer = setInterval(tick, LAST_POLL_MS);
  try {
    await run('qemu-img', ['rebase', '-f', 'qcow2', '-b', '', overlay], {
      timeoutMs: REBASE_TIMEOUT_MS,
      signal,
    });
    const fd = fs.openSync(overlay, 'r');
    fs.fsyncSync(fd);
    fs.closeSync(fd);
  } catch (error) {
    if (signal.aborted) throw interrupted(target, `to go on: chunkmount boot --finish ${record.name}`);
    throw error;
  } finally {
    clearInterval(timer);
    progress.end();
  }
}

/** QEMU and libvirt only know of an input/output error: if a reader of the images ran into damage, that is why. */
function notPulled(request: PullRequest, disk: BootDisk, cause?: unknown): Error {
  const { record, damage } = request;
  const { target, overlay } = disk;
  const sentence = `disk ${target} of ${record.name} is not copied`;
  const damaged = cause === undefined || cause instanceof CommandError ? damage() : undefined;
  if (damaged !== undefined) return notWhole(request, disk, { sentence: `${sentence}: ${damaged}`, cause });
  const why = cause === undefined ? "libvirt's job ended without success" : messageOf(cause);
  const kind = cause instanceof ChunkmountError ? cause.kind : 'failed';
  return new ChunkmountError(kind, `${sentence}: ${why}`, {
    hint: `nothing is lost; is there room where ${overlay} lies, and the tree whole (chunkmount verify)? then finish again`,
    cause,
  });
}

/** What was damaged may have been mended since it was read: then it is something else that is to be looked for. */
function notWhole(
  { record: { name, tree } }: PullRequest,
  { overlay }: BootDisk,
  { sentence, cause }: { readonly sentence: string; readonly cause: unknown },
): Error {
  const verify = `chunkmount verify ${shellWord(tree)}`;
  return new ChunkmountError('integrity', sentence, {
    hint: `nothing is lost: take what is missing or damaged (${verify}) from another copy of the tree, then finish again, or throw the VM away: chunkmount boot --discard ${name}; if the tree is whole by now, is there room where ${overlay} lies?`,
    cause,
  });
}

/**
 * Copies into an overlay everything that it takes from its image, whether the VM runs or not, or stops or starts meanwhile. A copy
 * that was begun before is gone on with. Throws, with nothing lost, when that is not possible.
 */
export async function pullDisk(request: PullRequest, disk: BootDisk): Promise<void> {
  for (let change = 0; await needsBase(disk.overlay); change++) {
    const { active } = await look(request, disk);
    refuseSnapshots(request, disk);
    let problem: unknown;
    try {
      await (active ? pullLive : pullOffline)(request, disk);
    } catch (error) {
      problem = error;
    }
    if (request.signal.aborted) throw problem ?? interrupted(disk.target, 'run the same command again');
    if (!(await needsBase(disk.overlay))) return;
    const now = await look(request, disk);
    if (now.active === active || change === MAX_CHANGES_OF_WAY) {
      if (problem instanceof ChunkmountError && problem.hint !== undefined) throw problem;
      throw notPulled(request, disk, problem);
    }
    request.reporter.debug(`disk ${disk.target}: the VM was started or stopped, trying again`);
  }
}
