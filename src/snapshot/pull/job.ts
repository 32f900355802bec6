import { failed } from '../../errors.js';
import { readIfExists } from '../../host/durable.js';
import { bootId, isAlive } from '../../host/process-identity.js';
import { findProcesses } from '../../host/process-list.js';
import { type RunningBackup, runningBackup } from '../../libvirt/backup-job.js';
import type { Virsh } from '../../libvirt/virsh.js';
import type { JobRecord } from './record.js';

/** As with overlays: libvirt goes on with what it was asked for when who asked is gone. */
const LATE_JOB_MS = 60_000;
const UNSEEN_REQUEST_MS = 5_000;
const POLL_MS = 250;
const END_TIMEOUT_MS = 60_000;

function pause(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, POLL_MS));
}

/** Nobody else has that socket, and nobody else's job those files. */
function isOurs(job: RunningBackup | undefined, { socket, scratches }: JobRecord): boolean {
  return job?.socket === socket && job.scratches.every((file) => scratches.includes(file));
}

/** Whether the domain's backup job is the one that the record speaks of. */
export async function isJobThere(virsh: Virsh, record: JobRecord): Promise<boolean> {
  return isOurs(await runningBackup(virsh, record.domain.uuid), record);
}

/** Whether libvirt may still begin the job: it was asked a short while ago, in this boot, and did not answer. */
async function mayStillCome(virsh: Virsh, record: JobRecord): Promise<boolean> {
  const { askedAt, answered, domain, qemu, targets } = record;
  if (answered === true || record.bootId !== bootId() || !isAlive(qemu)) return false;
  const age = Date.now() - askedAt;
  const asking = (argv: readonly string[]) => argv.includes('backup-begin') && argv.includes(domain.uuid);
  if (age < UNSEEN_REQUEST_MS || findProcesses(asking).length > 0) return age < LATE_JOB_MS;
  // While libvirt begins a job it lets nobody else look at the disks.
  const [target] = targets;
  if (target === undefined || (await virsh.answersAbout(domain.uuid, target))) return false;
  if (age < LATE_JOB_MS) return true;
  throw failed(`libvirt has been busy with ${domain.name} since the backup job was asked for`, {
    hint: 'see virsh domjobinfo; then run cleanup again',
  });
}

/** Ends the job, if it is there or still comes, and if it is ours. Returns once it is gone. */
export async function endJob(virsh: Virsh, record: JobRecord, signal?: AbortSignal): Promise<void> {
  const { domain } = record;
  const deadline = performance.now() + END_TIMEOUT_MS;
  for (;;) {
    const last = !(await mayStillCome(virsh, record));
    if (await isJobThere(virsh, record)) break;
    if (last) return;
    signal?.throwIfAborted();
    await pause();
  }
  await virsh.abortDomainJob(domain.uuid);
  while (await isJobThere(virsh, record)) {
    signal?.throwIfAborted();
    if (performance.now() > deadline) {
      throw failed(`the backup job of ${domain.name} does not end`, {
        hint: `see virsh domjobinfo ${domain.name}, end it with virsh domjobabort, then run cleanup again`,
      });
    }
    await pause();
  }
}

/** `ffff…: 00000002 00000000 00010000 0001 01 4711 /path`: a listening stream socket; see proc_net_unix in unix(7), and net/unix/af_unix.c. */
const LISTENING = /^\S+ \S+ \S+ 00010000 0001 01 +\d+ (.+)$/gm;

/**
 * Whether the job's server still listens: it ends with the job, and with QEMU. Nothing connects for that: QEMU before 9.1 can crash
 * when its server is stopped while somebody begins to talk to it (CVE-2024-7409).
 */
export function isServing({ socket, qemu }: Pick<JobRecord, 'socket' | 'qemu'>): boolean {
  if (!isAlive(qemu)) return false;
  const sockets = readIfExists(`/proc/${qemu.pid}/net/unix`) ?? '';
  return [...sockets.matchAll(LISTENING)].some(([, path]) => path === socket);
}
