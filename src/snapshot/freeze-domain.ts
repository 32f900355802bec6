import { failed, messageOf, usage } from '../errors.js';
import type { ProcessIdentity } from '../host/process-identity.js';
import type { Disk } from '../libvirt/domain.js';
import { loadDomainByUuid } from '../libvirt/load-domain.js';
import { findQemu } from '../libvirt/qemu-process.js';
import { saveMemory } from './memory.js';
import { whilePaused } from './pause.js';
import type { Consistency, FrozenDisk, SnapshotKind, SnapshotRequest } from './provider.js';
import { quiesceRefusal, whileFrozen } from './quiesce.js';
import { chooseProviders, type ProviderGroup, selectDisks } from './select.js';
import { restart, shutDown } from './shutdown.js';

export interface FreezeDomainRequest extends Omit<SnapshotRequest, 'disks'> {
  readonly exclude: readonly string[];
  readonly snapshot: 'auto' | SnapshotKind;
  /** `--no-snapshot`: with the kind `none`, a running VM is paused until the session ends. */
  readonly pause?: boolean | undefined;
  /** `--shutdown`: the VM is shut down for the snapshot and started again. */
  readonly shutdown?: { readonly timeoutMs: number } | undefined;
}

export interface FrozenDomainDisk extends FrozenDisk {
  readonly bus: string;
  readonly kind: SnapshotKind;
}

export interface DomainSnapshot {
  readonly time: Date;
  readonly consistency: Consistency;
  /** In the order of the domain's XML. */
  readonly disks: readonly FrozenDomainDisk[];
}

/**
 * Freezes the disks of a VM that the user wants, all at one point in time, however many kinds of snapshot that takes. What
 * it did to the host is in the journal, also when it throws.
 */
export async function freezeDomain(request: FreezeDomainRequest): Promise<DomainSnapshot> {
  checkOptions(request);
  const { domain, exclude, reporter, shutdown } = request;
  const disks = selectDisks(domain, { exclude, reporter });
  if (shutdown !== undefined && domain.state === 'paused')
    reporter.warn(`${domain.name} is paused and cannot shut down: its snapshot is as after a power failure`);
  if (shutdown === undefined || domain.state !== 'running') return freezeNow(request, disks);
  return freezeShutDown(request, shutdown.timeoutMs);
}

function checkOptions({ domain, options, snapshot, shutdown }: FreezeDomainRequest): void {
  if (options.memoryFile === undefined) return;
  const exclude = (option: string) =>
    usage(`the memory of ${domain.name} cannot be saved with ${option}`, {
      hint: `leave out --state or ${option}`,
    });
  if (options.quiesce === 'require') throw exclude('--quiesce');
  if (shutdown !== undefined) throw exclude('--shutdown');
  if (snapshot === 'none' || snapshot === 'pull') throw exclude(`--snapshot=${snapshot}`);
  if (!domain.active)
    throw usage(`${domain.name} is shut off and has no memory to save`, { hint: 'leave out --state' });
}

/** Shuts the VM down, freezes it as it is then, and lets it run again at once (or, without a snapshot, at the end). */
async function freezeShutDown(request: FreezeDomainRequest, timeoutMs: number): Promise<DomainSnapshot> {
  const { virsh, domain, reporter, exclude } = request;
  const subject = { ...request, qemu: findQemu(domain) };
  const duty = await shutDown(subject, timeoutMs);
  reporter.notice(`${domain.name} was shut down`);
  // Started, but before its first instruction: only then can a VM be put onto overlays, and nothing has been written yet.
  if (request.snapshot !== 'none') await virsh.start(domain.uuid, { paused: true });
  const now = await loadDomainByUuid(virsh, domain.uuid);
  const options = { ...request.options, quiesce: 'no' } as const;
  const again = { ...request, domain: now, options };
  const snapshot = await freezeNow(again, selectDisks(now, { exclude, reporter: request.reporter }));
  if (request.snapshot !== 'none') await restart(subject, duty);
  return { ...snapshot, consistency: 'offline' };
}

async function freezeNow(request: FreezeDomainRequest, disks: readonly Disk[]): Promise<DomainSnapshot> {
  const groups = await chooseProviders({ ...request, disks });
  const parts: Part[] = [];
  const consistency = await atOnePoint(request, groups, parts);
  const all = parts.flatMap(({ frozen, kind }) => frozen.map((disk) => ({ ...disk, kind })));
  return {
    time: parts[0]!.time,
    consistency,
    disks: disks.map(({ target, bus }) => ({ ...all.find((one) => one.target === target)!, bus })),
  };
}

interface Part {
  readonly kind: SnapshotKind;
  readonly time: Date;
  readonly consistency: Consistency;
  readonly frozen: readonly FrozenDisk[];
}

/** Freezes the groups one after the other, with the VM standing still meanwhile if there is more than one that it writes to. */
async function atOnePoint(
  request: FreezeDomainRequest,
  groups: readonly ProviderGroup[],
  parts: Part[],
): Promise<Consistency> {
  const { domain, options } = request;
  const written = groups.filter(({ disks }) => disks.some((disk) => !disk.readonly));
  const alone = written.length <= 1 && !['lvm', 'reflink', 'pull'].includes(written[0]?.provider.kind ?? '');
  if (
    !domain.active ||
    (alone && (written[0]?.provider.kind === 'overlay' || options.memoryFile === undefined))
  ) {
    await freezeGroups(request, groups, parts);
    return parts[0]!.consistency;
  }
  return standingStill(request, written.length > 1, () => freezeGroups(plain(request), groups, parts));
}

/** The request without what is done once for all groups. */
function plain(request: FreezeDomainRequest): FreezeDomainRequest {
  return { ...request, options: { ...request.options, quiesce: 'no', memoryFile: undefined } };
}

async function freezeGroups(
  request: FreezeDomainRequest,
  groups: readonly ProviderGroup[],
  parts: Part[],
): Promise<void> {
  for (const { provider, disks } of groups) {
    const { time, consistency, disks: frozen } = await provider.freeze({ ...request, disks });
    parts.push({ kind: provider.kind, time, consistency, frozen });
  }
}

/** Freezes the guest's file systems or saves its memory, as asked, around `work`. */
async function standingStill(
  request: FreezeDomainRequest,
  pause: boolean,
  work: () => Promise<void>,
): Promise<Consistency> {
  const { virsh, domain, journal, options } = request;
  const qemu = findQemu(domain);
  if (qemu === undefined) throw failed(`the QEMU process of ${domain.name} is not found on this host`);
  if (options.memoryFile !== undefined) {
    const memory = { virsh, domain, qemu, journal, file: options.memoryFile };
    const targets = domain.disks.map(({ target }) => target);
    await paused(request, qemu, async () => {
      await saveMemory(memory, targets);
      await work();
    });
    return 'memory';
  }
  const wholeWork = pause ? () => paused(request, qemu, work) : work;
  if (await frozen(request, qemu, wholeWork)) return 'filesystem';
  return 'crash';
}

async function paused(
  request: FreezeDomainRequest,
  qemu: ProcessIdentity,
  work: () => Promise<void>,
): Promise<void> {
  const { virsh, domain, journal, reporter } = request;
  const stood = await whilePaused({ virsh, domain, qemu, journal }, work);
  if (stood > 0) reporter.notice(`${domain.name} was paused for ${Math.round(stood)} ms`);
}

/** Does `work`, with the guest's file systems frozen if that was asked for and can be. Returns whether they were. */
async function frozen(
  request: FreezeDomainRequest,
  qemu: ProcessIdentity,
  work: () => Promise<void>,
): Promise<boolean> {
  const { quiesce } = request.options;
  let done = false;
  const once = async () => {
    done = true;
    await work();
  };
  const why = quiesce === 'no' ? 'not asked for' : await tryFrozen(request, qemu, once, () => done);
  if (why === undefined) return true;
  const sentence = `the file systems of ${request.domain.name} were not frozen: ${why}`;
  if (quiesce === 'require') {
    throw failed(sentence, {
      hint: 'is qemu-guest-agent running in the guest? --quiesce=try goes on without',
    });
  }
  if (quiesce === 'try') request.reporter.warn(`${sentence}; its snapshot is as after a power failure`);
  if (!done) await once();
  return false;
}

/** Why the work was not done (or not to its end) with the file systems frozen; undefined if it was. */
async function tryFrozen(
  request: FreezeDomainRequest,
  qemu: ProcessIdentity,
  work: () => Promise<void>,
  begun: () => boolean,
): Promise<string | undefined> {
  const { virsh, domain, journal, reporter } = request;
  const refused = await quiesceRefusal(virsh, domain.uuid);
  if (refused !== undefined) return refused;
  try {
    const whole = await whileFrozen({ virsh, domain, qemu, journal, reporter }, work);
    return whole ? undefined : 'the snapshots took longer than a freeze may last';
  } catch (error) {
    if (begun() || request.signal?.aborted === true) throw error;
    return messageOf(error);
  }
}
