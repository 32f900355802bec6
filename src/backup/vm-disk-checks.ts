import * as fs from 'node:fs';
import { ChunkmountError, messageOf } from '../errors.js';
import { shellWord } from '../host/shell-word.js';
import type { Disk, Domain } from '../libvirt/domain.js';
import type { Virsh } from '../libvirt/virsh.js';
import { silentReporter } from '../report/reporter.js';
import { lvmProvider } from '../snapshot/lvm/provider.js';
import { overlayPath } from '../snapshot/overlay/files.js';
import { chooseProviders, selectDisks } from '../snapshot/select.js';
import type { CheckResult } from './check-result.js';

export interface DiskChecks {
  readonly virsh: Virsh;
  readonly domain: Domain;
  /** As for `--overlay-dir`. */
  readonly overlayDirectory: string | undefined;
  /** A session has its disks: what may be done with them is seen when it has ended. */
  readonly inSession: boolean;
}

interface Refusal {
  readonly disk: string;
  readonly detail: string;
}

/** Says which disks of a VM a backup would refuse, and why, by asking what a backup asks. */
export async function checkDisks(checks: DiskChecks): Promise<CheckResult[]> {
  const { domain } = checks;
  const { disks, refusals, none } = sortDisks(domain);
  const results = await Promise.all(disks.map((disk) => checkDisk(checks, disk)));
  const refused = refusals.map(({ disk, detail }) => ({
    ...missing(domain, disk, detail, 'backing it up'),
    fix: withoutThem(domain, disks, refusals),
  }));
  return [...refused, ...(none === undefined ? [] : [none]), ...results.flat()];
}

interface SortedDisks {
  readonly disks: readonly Disk[];
  readonly refusals: readonly Refusal[];
  /** Said of a VM that has no disk, whatever is excluded. */
  readonly none: CheckResult | undefined;
}

/** A backup ends with the first disk that it refuses: that one is left out, and the others are asked for again. */
function sortDisks(domain: Domain): SortedDisks {
  const refusals: Refusal[] = [];
  for (;;) {
    const exclude = refusals.map(({ disk }) => disk);
    try {
      const disks = selectDisks(domain, { exclude, reporter: silentReporter });
      return { disks, refusals, none: undefined };
    } catch (error) {
      const disk = error instanceof ChunkmountError ? error.details.disk : undefined;
      if (typeof disk === 'string' && !exclude.includes(disk)) {
        refusals.push({ disk, detail: messageOf(error) });
        continue;
      }
      return { disks: [], refusals, none: exclude.length > 0 ? undefined : noDisks(domain, error) };
    }
  }
}

function noDisks({ name }: Domain, error: unknown): CheckResult {
  const fix = `virsh domblklist --details ${shellWord(name)}`;
  return { name: `${name}: disks`, state: 'missing', detail: messageOf(error), need: 'backing it up', fix };
}

function withoutThem({ name }: Domain, others: readonly Disk[], refusals: readonly Refusal[]): string {
  if (others.length === 0) return `none of its disks is left: virsh domblklist --details ${shellWord(name)}`;
  return `back up the others: --exclude=${refusals.map(({ disk }) => disk).join(',')}`;
}

/** How a disk that may be backed up would be frozen: with snapshots as they are chosen when nobody says which. */
async function checkDisk(checks: DiskChecks, disk: Disk): Promise<CheckResult[]> {
  const { virsh, domain, overlayDirectory, inSession } = checks;
  try {
    if (domain.active && !inSession)
      await chooseProviders({ virsh, domain, disks: [disk], snapshot: 'auto', reporter: silentReporter });
    if (overlayDirectory === undefined && !disk.readonly && isBlockDevice(disk))
      await checkBlockDevice(checks, disk);
    return [];
  } catch (error) {
    const fix = (error instanceof ChunkmountError ? error.hint : undefined) ?? `--exclude=${disk.target}`;
    const need = `backing up ${domain.name} while it runs`;
    return [{ ...missing(domain, disk.target, messageOf(error), need), fix }];
  }
}

export function isBlockDevice({ path }: Disk): boolean {
  return path !== undefined && fs.statSync(path, { throwIfNoEntry: false })?.isBlockDevice() === true;
}

/** Throws for a device that LVM cannot freeze: it takes an overlay, for which there is no place beside it. */
async function checkBlockDevice({ virsh, domain }: DiskChecks, disk: Disk): Promise<void> {
  if ((await lvmProvider.refusal({ virsh, domain }, disk)) !== undefined) overlayPath(disk, '', 0, undefined);
}

function missing({ name }: Domain, disk: string, detail: string, need: string): CheckResult {
  return { name: `${name}: disk ${disk}`, state: 'missing', detail, need };
}
