import { messageOf } from '../errors.js';
import { CommandError } from '../host/command-error.js';
import { INPUT_FILE, SECOND_INPUT_FILE, type Virsh } from './virsh.js';
import { attribute, child, children, escapeXml, parseXml, rootOf } from './xml.js';

/** libvirt waits 30 s for its lock on the domain, and for the guest's writes that are under way. */
const BEGIN_TIMEOUT_MS = 90_000;

/** A disk in a backup job of the kind `pull`: its state is served by NBD, what the guest overwrites is saved in a file. */
export interface BackupDisk {
  readonly target: string;
  /** An empty qcow2 file of the disk's size. */
  readonly scratch: string;
  /** Also serve, as bitmap `changes`, what was written since that checkpoint. */
  readonly since?: string | undefined;
}

export interface BackupPlan {
  /** Of the NBD server; each disk is exported by its target. */
  readonly socket: string;
  /** All disks of the domain. */
  readonly targets: readonly string[];
  readonly disks: readonly BackupDisk[];
  readonly checkpoint?: { readonly name: string; readonly targets: readonly string[] } | undefined;
}

/** The bitmap's name in the NBD export. */
export const CHANGES_BITMAP = 'changes';

/** XML that names every disk of the domain: what libvirt is not told it decides itself. */
export function backupXml({ socket, targets, disks }: BackupPlan): string {
  const elements = targets.map((target) => {
    const disk = disks.find((one) => one.target === target);
    const name = escapeXml(target);
    if (disk === undefined) return `<disk name='${name}' backup='no'/>`;
    const since =
      disk.since === undefined
        ? `backupmode='full'`
        : `backupmode='incremental' incremental='${escapeXml(disk.since)}' exportbitmap='${CHANGES_BITMAP}'`;
    return (
      `<disk name='${name}' backup='yes' type='file' exportname='${name}' ${since}>` +
      `<driver type='qcow2'/><scratch file='${escapeXml(disk.scratch)}'/></disk>`
    );
  });
  const server = `<server transport='unix' socket='${escapeXml(socket)}'/>`;
  return `<domainbackup mode='pull'>${server}<disks>${elements.join('')}</disks></domainbackup>\n`;
}

/** XML of the checkpoint that is made with the backup. */
export function checkpointXml(name: string, all: readonly string[], targets: readonly string[]): string {
  const disks = all.map((target) => {
    const kind = targets.includes(target) ? 'bitmap' : 'no';
    return `<disk name='${escapeXml(target)}' checkpoint='${kind}'/>`;
  });
  return `<domaincheckpoint><name>${escapeXml(name)}</name><disks>${disks.join('')}</disks></domaincheckpoint>\n`;
}

/** Begins a backup job, and makes its checkpoint at the same moment. Throws CommandError; then neither is there. */
export async function beginBackup(virsh: Virsh, uuid: string, plan: BackupPlan): Promise<void> {
  const { checkpoint, targets } = plan;
  const texts = [backupXml(plan)];
  const args = ['--domain', uuid, '--reuse-external', '--backupxml', INPUT_FILE];
  if (checkpoint !== undefined) {
    texts.push(checkpointXml(checkpoint.name, targets, checkpoint.targets));
    args.push('--checkpointxml', SECOND_INPUT_FILE);
  }
  await virsh.callWith(texts, 'backup-begin', args, BEGIN_TIMEOUT_MS);
}

/** What tells one backup job from another. */
export interface RunningBackup {
  readonly socket: string | undefined;
  readonly scratches: readonly string[];
}

/** Reads what `virsh backup-dumpxml` prints. */
export function parseBackup(xml: string): RunningBackup {
  const root = rootOf(parseXml(xml, 'domainbackup'));
  const disks = child(root, 'disks');
  return {
    socket: attribute(child(root, 'server'), 'socket'),
    scratches: (disks === undefined ? [] : children(disks, 'disk')).flatMap((disk) => {
      const file = attribute(child(disk, 'scratch'), 'file');
      return file === undefined ? [] : [file];
    }),
  };
}

/** The backup job of a domain, undefined if it has none, does not run, or is not there. */
export async function runningBackup(virsh: Virsh, uuid: string): Promise<RunningBackup | undefined> {
  if ((await virsh.list('active')).every((domain) => domain.uuid !== uuid)) return undefined;
  try {
    if ((await virsh.domainJob(uuid))?.isBackup !== true) return undefined;
    return parseBackup(await virsh.ask('backup-dumpxml', ['--domain', uuid]));
  } catch (error) {
    if (!(error instanceof CommandError) || error.exitCode === undefined) throw error;
    // It ended, or the domain did, between the questions.
    const active = (await virsh.list('active')).some((domain) => domain.uuid === uuid);
    if (active && (await virsh.domainJob(uuid))?.isBackup === true)
      throw new Error(`the backup job cannot be looked at: ${messageOf(error)}`, { cause: error });
    return undefined;
  }
}
