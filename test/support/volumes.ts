import { run } from '../../src/host/exec.js';
import { writePattern } from './libvirt.js';

/** The volume group that scripts/lvm-vm makes, of 4 GiB. */
export const VOLUME_GROUP = 'cmtest';

export interface TestVolume {
  readonly name: string;
  /** The device that a domain is given. */
  readonly device: string;
}

/** Makes a logical volume, in a thin pool of the group if one is named. */
export async function makeVolume(
  name: string,
  mib: number,
  options: { pool?: string; pattern?: number } = {},
): Promise<TestVolume> {
  const where =
    options.pool === undefined
      ? ['--size', `${mib}m`, VOLUME_GROUP]
      : ['--virtualsize', `${mib}m`, '--thinpool', options.pool, VOLUME_GROUP];
  await run('lvcreate', ['--yes', '--quiet', '--wipesignatures', 'n', '--name', name, ...where]);
  const volume = { name, device: `/dev/${VOLUME_GROUP}/${name}` };
  if (options.pattern !== undefined) {
    await writePattern(volume.device, 'raw', {
      offset: 0,
      length: mib * 1024 * 1024,
      pattern: options.pattern,
    });
  }
  return volume;
}

export async function makePool(name: string, mib: number): Promise<void> {
  await run('lvcreate', [
    '--yes',
    '--quiet',
    '--type',
    'thin-pool',
    '--size',
    `${mib}m`,
    '--name',
    name,
    VOLUME_GROUP,
  ]);
}

export async function removeVolumes(...names: readonly string[]): Promise<void> {
  await run('lvremove', ['--yes', '--quiet', ...names.map((name) => `${VOLUME_GROUP}/${name}`)]);
}

/** The names of all volumes of the group, sorted. */
export async function listVolumes(): Promise<string[]> {
  const { stdout } = await run('lvs', ['--noheadings', '-o', 'lv_name', VOLUME_GROUP]);
  return stdout
    .split('\n')
    .map((line) => line.trim())
    .filter(Boolean)
    .sort();
}
