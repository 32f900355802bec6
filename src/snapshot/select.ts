import * as fs from 'node:fs';
import { isTarget } from '../chunks/names.js';
import { failed, usage } from '../errors.js';
import type { Disk, Domain, DomainState } from '../libvirt/domain.js';
import type { Virsh } from '../libvirt/virsh.js';
import type { Reporter } from '../report/reporter.js';
import type { UndoHandlers } from '../session/undo.js';
import { diskRefusal } from './disk-refusal.js';
import { lvmProvider } from './lvm/provider.js';
import { noneProvider } from './none.js';
import { overlayProvider } from './overlay/provider.js';
import { pausedProvider } from './paused.js';
import type { SnapshotKind, SnapshotProvider } from './provider.js';
import { pullProvider } from './pull/provider.js';
import { reflinkProvider } from './reflink/provider.js';
import { shutdownUndo } from './shutdown.js';

const BY_KIND: Readonly<Record<SnapshotKind, SnapshotProvider>> = {
  overlay: overlayProvider,
  lvm: lvmProvider,
  reflink: reflinkProvider,
  pull: pullProvider,
  none: noneProvider,
};

/** In the order in which they freeze the disks of one VM. */
const PROVIDERS: readonly SnapshotProvider[] = [...Object.values(BY_KIND), pausedProvider];

/** The undo handlers of all snapshot kinds. */
export const snapshotUndo: UndoHandlers = Object.assign(
  {},
  shutdownUndo,
  ...PROVIDERS.map(({ undo }) => undo),
);

export interface SelectOptions {
  /** Targets that the user does not want. */
  readonly exclude: readonly string[];
  readonly reporter: Reporter;
}

function isRemovable({ device }: Disk): boolean {
  return device === 'cdrom' || device === 'floppy';
}

/**
 * The disks of a domain that are to be backed up, in the order of its XML. Skips cdroms and floppies with a notice. Throws for a
 * disk that cannot be backed up and is not excluded, for an excluded one that does not exist, and when none is left.
 */
export function selectDisks(domain: Domain, { exclude, reporter }: SelectOptions): Disk[] {
  const targets = domain.disks.map(({ target }) => target);
  const unknown = exclude.filter((name) => !targets.includes(name));
  if (unknown.length > 0) {
    throw usage(`${domain.name} has no disk ${unknown.join(', ')} to exclude`, {
      hint: targets.length === 0 ? `it has no disks at all` : `its disks are ${targets.join(', ')}`,
    });
  }
  const wanted = domain.disks.filter(({ target }) => !exclude.includes(target));
  for (const { target, device } of wanted.filter(isRemovable)) {
    reporter.notice(`${domain.name}: ${device} ${target} is skipped`);
  }
  const disks = wanted.filter((disk) => !isRemovable(disk));
  for (const disk of disks) checkDisk(domain, disk);
  if (disks.length > 0) return disks;
  throw failed(`${domain.name} has no disk to back up`, {
    hint: exclude.length > 0 ? 'exclude fewer of its disks' : `see virsh domblklist --details ${domain.name}`,
  });
}

function checkDisk(domain: Domain, disk: Disk): void {
  const reason = isTarget(disk.target)
    ? diskRefusal(disk)
    : 'its target is not made of letters and digits alone';
  if (reason === undefined) return;
  throw failed(`disk ${disk.target} of ${domain.name} cannot be backed up: ${reason}`, {
    hint: `back up the others: --exclude=${disk.target}`,
    details: { domain: domain.name, disk: disk.target },
  });
}

export interface ChoiceRequest {
  readonly virsh: Virsh;
  readonly domain: Domain;
  readonly disks: readonly Disk[];
  readonly snapshot: 'auto' | SnapshotKind;
  /** With `none`: pause the VM if it runs. */
  readonly pause?: boolean | undefined;
  readonly reporter: Reporter;
  readonly signal?: AbortSignal | undefined;
}

/** Disks that one provider freezes together. */
export interface ProviderGroup {
  readonly provider: SnapshotProvider;
  readonly disks: readonly Disk[];
}

interface Choice {
  readonly kind: SnapshotKind;
  readonly reason: string;
  /** The provider was asked already, and does not refuse. */
  readonly agreed?: boolean;
}

async function automatic({ virsh, domain, signal }: ChoiceRequest, disk: Disk): Promise<Choice> {
  if (!domain.active) return { kind: 'none', reason: `${domain.name} is shut off` };
  if (disk.readonly) return { kind: 'none', reason: 'the disk is read-only' };
  const running = `${domain.name} is ${domain.state}`;
  if (
    disk.path === undefined ||
    fs.statSync(disk.path, { throwIfNoEntry: false })?.isBlockDevice() !== true
  ) {
    return { kind: 'overlay', reason: running };
  }
  const refusal = await lvmProvider.refusal({ virsh, domain, signal }, disk);
  if (refusal === undefined)
    return { kind: 'lvm', reason: `${running}, and the disk is a logical volume`, agreed: true };
  return { kind: 'overlay', reason: `${running}, and LVM cannot be used (${refusal})` };
}

function providerOf(kind: SnapshotKind, pause: boolean): SnapshotProvider {
  return kind === 'none' && pause ? pausedProvider : BY_KIND[kind];
}

/**
 * Chooses how each disk is frozen, and groups the disks so. Throws, naming disk and reason, when the kind that was asked
 * for (or the only one possible) refuses.
 */
export async function chooseProviders(request: ChoiceRequest): Promise<ProviderGroup[]> {
  const { virsh, domain, disks, snapshot, reporter, signal } = request;
  const groups = new Map<SnapshotProvider, Disk[]>();
  for (const disk of disks) {
    const choice: Choice =
      snapshot === 'auto'
        ? await automatic(request, disk)
        : { kind: snapshot, reason: `--snapshot=${snapshot}` };
    const provider = providerOf(choice.kind, request.pause === true);
    const refusal =
      choice.agreed === true ? undefined : await provider.refusal({ virsh, domain, signal }, disk);
    if (refusal !== undefined) throw refused(domain, disk, choice.kind, refusal);
    reporter.debug(`disk ${disk.target}: snapshot kind ${choice.kind}, because ${choice.reason}`);
    groups.set(provider, [...(groups.get(provider) ?? []), disk]);
  }
  const order = (group: ProviderGroup) => PROVIDERS.indexOf(group.provider);
  return [...groups]
    .map(([provider, some]) => ({ provider, disks: some }))
    .sort((a, b) => order(a) - order(b));
}

/** What to do about a VM that does not run, by those kinds that mind. */
const WAY_OUT_OF: Readonly<Partial<Record<DomainState, (name: string) => string>>> = {
  pmsuspended: (name) => `it sleeps: wake it up (virsh dompmwakeup ${name})`,
  crashed: (name) => `end it (virsh destroy ${name}), and back it up while it is off`,
  'shut off': (name) => `leave out --snapshot: it stands still by itself; or start it (virsh start ${name})`,
  'in shutdown': () => 'wait until it is off',
};
const KINDS_FOR_ANY_STATE: ReadonlySet<SnapshotKind> = new Set(['lvm', 'reflink']);

function refused(domain: Domain, disk: Disk, kind: SnapshotKind, refusal: string): Error {
  const ways: Record<SnapshotKind, string> = {
    overlay: 'wait until what works on the VM has ended, or try another kind (--snapshot)',
    lvm: 'try another kind (--snapshot=overlay)',
    reflink: 'try another kind (--snapshot=overlay)',
    pull: 'wait until what works on the VM has ended, or try another kind (--snapshot)',
    none: 'shut it down first, pause it (--no-snapshot), or take a snapshot (--snapshot=auto)',
  };
  const way = KINDS_FOR_ANY_STATE.has(kind) ? undefined : WAY_OUT_OF[domain.state]?.(domain.name);
  return failed(
    `no ${kind === 'none' ? 'backup without a snapshot' : `${kind} snapshot`} of ${domain.name} is possible: ${refusal}`,
    {
      hint: way ?? `${ways[kind]}; or leave the disk out: --exclude=${disk.target}`,
      details: { domain: domain.name, disk: disk.target, kind },
    },
  );
}
