import * as fs from 'node:fs';
import * as path from 'node:path';
import { checkName } from '../chunks/names.js';
import { ChunkmountError, messageOf } from '../errors.js';
import { readIfExists } from '../host/durable.js';
import { shellWord } from '../host/shell-word.js';
import { HELPER_PROFILE, LOCAL_PROFILE, mayRead } from '../libvirt/apparmor.js';
import { type Confinement, confinementOf } from '../libvirt/confinement.js';
import type { Disk, Domain } from '../libvirt/domain.js';
import { loadDomainByUuid } from '../libvirt/load-domain.js';
import type { DomainName, Virsh } from '../libvirt/virsh.js';
import { attribute, child, children, parseXml, rootOf } from '../libvirt/xml.js';
import { StateDirectory } from '../session/state-directory.js';
import { checkSpace } from '../snapshot/overlay/files.js';
import type { CheckResult } from './check-result.js';
import { checkDisks, isBlockDevice } from './vm-disk-checks.js';

const PING_SECONDS = 3;
/** Each waits for its agent, and asks libvirt several times. */
const AT_A_TIME = 8;
const AGENT_CHANNEL = 'org.qemu.guest_agent.0';

export interface VmChecks {
  readonly virsh: Virsh;
  readonly domains: readonly DomainName[];
  /** As for `--overlay-dir`. */
  readonly overlayDirectory: string | undefined;
  readonly stateDirectory: string;
}

/**
 * Looks at what backing up each VM needs: a name for its tree, disks that can be backed up, room for its overlays, its guest agent,
 * and what confines its QEMU.
 */
export async function checkVms(checks: VmChecks): Promise<CheckResult[]> {
  const { virsh, domains, overlayDirectory, stateDirectory } = checks;
  const state = new StateDirectory(stateDirectory);
  const unknown: Confinement = { models: [], user: undefined };
  const confinement = await confinementOf(virsh).catch(() => unknown);
  const profile = confinement.models.includes('apparmor') ? helperProfile() : undefined;
  const results = [confinementResult(confinement), ...checkAccess(overlayDirectory, confinement)];
  for (let at = 0; at < domains.length; at += AT_A_TIME) {
    const some = domains.slice(at, at + AT_A_TIME).map(({ uuid, name }) => checkVm(uuid, name));
    results.push(...(await Promise.all(some)).flat());
  }
  return results;

  async function checkVm(uuid: string, name: string): Promise<CheckResult[]> {
    let domain: Domain;
    try {
      domain = await loadDomainByUuid(virsh, uuid);
    } catch (error) {
      const fix = `virsh dumpxml ${shellWord(name)}`;
      return [{ name, state: 'missing', detail: messageOf(error), need: 'backing it up', fix }];
    }
    const inSession = fs.existsSync(state.session(name));
    return [
      ...checkVmName(domain),
      ...(await checkDisks({ virsh, domain, overlayDirectory, inSession })),
      ...overlayPlaces(domain, overlayDirectory).map((place) => checkPlace(name, place)),
      ...(profile === undefined ? [] : checkConfinement(domain, overlayDirectory, profile)),
      ...(domain.state === 'running' ? [await checkAgent(virsh, domain)] : []),
    ];
  }
}

/** What a tree cannot be called cannot be backed up: its name is a directory's name. */
function checkVmName({ name, active }: Domain): CheckResult[] {
  try {
    checkName(name);
    return [];
  } catch (error) {
    const rename = `virsh domrename ${shellWord(name)} ${nameLike(name)}`;
    const fix = active ? `when it is off: ${rename}` : rename;
    return [{ name, state: 'missing', detail: messageOf(error), need: 'backing it up', fix }];
  }
}

/** A name that a tree may have. */
function nameLike(name: string): string {
  return name
    .replaceAll(/[^A-Za-z0-9_.+@:-]/g, '_')
    .replace(/^[^A-Za-z0-9_]/, '_')
    .slice(0, 64);
}

function confinementResult({ models }: Confinement): CheckResult {
  const names = models.filter((model) => model !== 'dac' && model !== 'none');
  return {
    name: 'confinement of QEMU',
    state: 'ok',
    detail: names.length === 0 ? 'none' : names.join(', '),
  };
}

/** QEMU opens an overlay by its path, as its own user: it must get into all directories above. An access control list may let it. */
function checkAccess(directory: string | undefined, { user }: Confinement): CheckResult[] {
  if (directory === undefined || user === undefined || user.uid === 0) return [];
  const closed = pathsTo(directory).filter((place) => !mayEnter(place, user));
  return closed.map((place) => ({
    name: 'overlay directory',
    state: 'poor' as const,
    detail: `the mode of ${place} does not let QEMU's user ${user.uid} in`,
    need: `overlays in ${directory}`,
    fix: `chmod o+x ${shellWord(place)}`,
  }));
}

/** `/a/b` → `/`, `/a`, `/a/b`. */
function pathsTo(directory: string): string[] {
  const parent = path.dirname(directory);
  return parent === directory ? [directory] : [...pathsTo(parent), directory];
}

/** One that is not there is not closed either. */
function mayEnter(directory: string, { uid, gid }: { readonly uid: number; readonly gid: number }): boolean {
  const stats = fs.statSync(directory, { throwIfNoEntry: false });
  if (stats === undefined) return true;
  if (stats.uid === uid) return (stats.mode & 0o100) !== 0;
  return (stats.mode & (stats.gid === gid ? 0o010 : 0o001)) !== 0;
}

function helperProfile(): string | undefined {
  const profile = readIfExists(HELPER_PROFILE);
  return profile === undefined ? undefined : `${profile}\n${readIfExists(LOCAL_PROFILE) ?? ''}`;
}

function disksOf({ disks }: Domain): (Disk & { path: string })[] {
  return disks.flatMap((disk) =>
    disk.device === 'disk' && !disk.readonly && disk.path !== undefined ? [{ ...disk, path: disk.path }] : [],
  );
}

/** Directories that overlays of its disks would be made in. */
function overlayPlaces(domain: Domain, overlayDirectory: string | undefined): string[] {
  if (overlayDirectory !== undefined) return [overlayDirectory];
  const files = disksOf(domain).filter((disk) => disk.type !== 'block' && !isBlockDevice(disk));
  return [...new Set(files.map((disk) => path.dirname(disk.path)))];
}

function checkPlace(vm: string, place: string): CheckResult {
  const name = `${vm}: overlays`;
  try {
    checkSpace(path.join(place, 'overlay'));
    const { bavail, bsize } = fs.statfsSync(place);
    return { name, state: 'ok', detail: `in ${place}`, free: bavail * bsize };
  } catch (error) {
    const fix =
      error instanceof ChunkmountError && error.hint !== undefined ? error.hint : `df ${shellWord(place)}`;
    return { name, state: 'missing', detail: messageOf(error), need: `backing up ${vm} while it runs`, fix };
  }
}

/** Images that AppArmor keeps libvirt from looking into: with an overlay on them, QEMU is refused them. */
function checkConfinement(
  domain: Domain,
  overlayDirectory: string | undefined,
  profile: string,
): CheckResult[] {
  const overlay = overlayDirectory === undefined ? [] : [path.join(overlayDirectory, 'vda.cm-x.qcow2')];
  const images = disksOf(domain).flatMap((disk) => (disk.type === 'block' ? [] : [disk.path]));
  const refused = [...images, ...overlay].filter((image) => !mayRead(profile, image));
  return [...new Set(refused.map((image) => path.dirname(image)))].map((directory) => ({
    name: `${domain.name}: AppArmor`,
    state: 'missing' as const,
    detail: `does not let libvirt read ${refused.filter((image) => path.dirname(image) === directory).join(', ')}`,
    need: `backing up ${domain.name} while it runs: QEMU would be refused the image below an overlay`,
    fix: `echo ${shellWord(`${directory}/** r,`)} >>${LOCAL_PROFILE}; apparmor_parser -r ${HELPER_PROFILE}`,
  }));
}

async function checkAgent(virsh: Virsh, { uuid, name: vm }: Domain): Promise<CheckResult> {
  const name = `${vm}: guest agent`;
  const need = '--quiesce: file systems that are clean, not as after a power failure';
  try {
    const devices = child(rootOf(parseXml(await virsh.dumpXml(uuid), 'domain')), 'devices');
    const channels = devices === undefined ? [] : children(devices, 'channel');
    if (!channels.some((channel) => attribute(child(channel, 'target'), 'name') === AGENT_CHANNEL)) {
      const xml = `<channel type="unix"><target type="virtio" name="${AGENT_CHANNEL}"/></channel>`;
      const fix = `echo '${xml}' | virsh attach-device ${shellWord(vm)} /dev/stdin --config; then in the guest: apt-get install qemu-guest-agent; and start it anew`;
      return { name, state: 'poor', detail: 'the VM has no channel for it', need, fix };
    }
    await virsh.agentCommand(uuid, 'guest-ping', PING_SECONDS);
    return { name, state: 'ok', detail: 'answers' };
  } catch (error) {
    const fix = 'in the guest: apt-get install qemu-guest-agent; systemctl enable --now qemu-guest-agent';
    return { name, state: 'poor', detail: `does not answer (${messageOf(error)})`, need, fix };
  }
}
