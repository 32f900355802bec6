import { failed } from '../../errors.js';
import type { Disk } from '../../libvirt/domain.js';
import { loadDescription } from '../../libvirt/load-domain.js';
import type { Virsh } from '../../libvirt/virsh.js';
import type { ProgressTask, Reporter } from '../../report/reporter.js';

/** A look takes libvirt a few milliseconds. */
const FIRST_POLL_MS = 10;
const LAST_POLL_MS = 500;
/** So much longer than the job takes it may seem to take. */
const LATE_SHARE = 0.04;

/** One merge that is waited for. */
export interface MergeWatch {
  readonly virsh: Virsh;
  readonly reporter: Reporter;
  readonly uuid: string;
  readonly name: string;
  readonly target: string;
  /** As performance.now() has it: the clock of the host may be set meanwhile. */
  readonly deadline: number;
}

/** Waits between looks: the longer the more time has passed. Throws when the deadline has passed; the job goes on. */
export class Pacer {
  readonly #begun = performance.now();

  constructor(readonly watch: MergeWatch) {}

  async wait(): Promise<void> {
    const { name, target, deadline } = this.watch;
    if (performance.now() > deadline) {
      throw failed(`disk ${target} of ${name} is not merged yet, and the time for it is over`, {
        hint: 'the VM runs on and nothing is lost; the merge goes on, and another cleanup finishes it (--commit-timeout gives it longer)',
      });
    }
    const wanted = (performance.now() - this.#begun) * LATE_SHARE;
    const delay = Math.min(Math.max(wanted, FIRST_POLL_MS), LAST_POLL_MS);
    await new Promise((resolve) => setTimeout(resolve, delay));
  }
}

/** Shows a job's progress; its total may grow while the guest writes. */
class JobProgress {
  #task: ProgressTask | undefined;
  #done = 0;

  constructor(
    readonly reporter: Reporter,
    readonly label: string,
  ) {}

  update(done: number, total: number): void {
    // A job that has just begun does not know yet how much there is.
    if (total <= 0) return;
    this.#task ??= this.reporter.progress(this.label, total);
    if (done > this.#done) this.#task.advance(done - this.#done);
    this.#done = Math.max(done, this.#done);
  }

  end(): void {
    this.#task?.end();
  }
}

export async function liveDisk(watch: MergeWatch): Promise<Disk | undefined> {
  const domain = await loadDescription(watch.virsh, watch.uuid);
  return domain.active ? domain.disks.find((disk) => disk.target === watch.target) : undefined;
}

/**
 * Watches the job on a disk until `isReady` says so of the disk; without it, until there is no job. Lifts a bandwidth limit, shows progress.
 * Throws when the deadline passes or the VM stops running.
 */
export async function watchJob(watch: MergeWatch, isReady?: (disk: Disk) => boolean): Promise<Disk> {
  const { virsh, uuid, target, name } = watch;
  const progress = new JobProgress(watch.reporter, `merging ${name} ${target}`);
  const pacer = new Pacer(watch);
  try {
    for (;;) {
      const job = await virsh.blockJob(uuid, target);
      if (job !== undefined && job.bandwidth > 0) await virsh.blockJobUnlimited(uuid, target);
      if (job !== undefined) progress.update(job.done, job.total);
      if (job === undefined || isReady !== undefined) {
        const disk = await liveDisk(watch);
        if (disk === undefined) throw failed(`${name} stopped while disk ${target} was merged`);
        if (isReady === undefined || isReady(disk)) return disk;
      }
      await pacer.wait();
    }
  } finally {
    progress.end();
  }
}
