import { describe, expect, it } from 'vitest';
import type { Disk, Domain, DomainState } from '../../src/libvirt/domain.js';
import { parseDomainXml } from '../../src/libvirt/domain-xml.js';
import { selectDisks, snapshotUndo } from '../../src/snapshot/select.js';
import { RecordingReporter } from '../support/snapshot-session.js';

function domainWith(disks: string, state: DomainState = 'running'): Domain {
  const xml = `<domain><name>mail01</name><uuid>590213d6-4648-4b40-be37-eb391696dce5</uuid><devices>${disks}</devices></domain>`;
  return { ...parseDomainXml(xml), state, active: state !== 'shut off', persistent: true };
}

const file = (target: string, more = '') =>
  `<disk type='file'><source file='/images/${target}'/><target dev='${target}'/>${more}</disk>`;

function select(disks: string, exclude: string[] = []): { targets: string[]; messages: string[] } {
  const reporter = new RecordingReporter();
  const selected: Disk[] = selectDisks(domainWith(disks), { exclude, reporter });
  return { targets: selected.map(({ target }) => target), messages: reporter.messages };
}

describe('selectDisks', () => {
  it('takes all disks, in the order of the XML', () => {
    expect(select(file('vdb') + file('vda')).targets).toEqual(['vdb', 'vda']);
  });

  it('skips cdroms and floppies with a notice, also empty ones', () => {
    const drives =
      "<disk type='file' device='cdrom'><target dev='sda'/><readonly/></disk>" +
      "<disk type='file' device='floppy'><source file='/f'/><target dev='fda'/></disk>";
    expect(select(file('vda') + drives)).toEqual({
      targets: ['vda'],
      messages: ['notice: mail01: cdrom sda is skipped', 'notice: mail01: floppy fda is skipped'],
    });
  });

  it('leaves out what is excluded, also what could not be backed up', () => {
    const network = "<disk type='network'><source protocol='rbd' name='x'/><target dev='vdb'/></disk>";
    expect(select(file('vda') + network, ['vdb'])).toEqual({ targets: ['vda'], messages: [] });
  });

  it.each([
    ["<disk type='network'><source protocol='rbd' name='x'/><target dev='vdb'/></disk>", /on the network/],
    ["<disk type='dir'><source dir='/d'/><target dev='vdb'/></disk>", /directory/],
    ["<disk type='vhostuser'><target dev='vdb'/></disk>", /not known/],
    ["<disk type='block' device='lun'><source dev='/dev/sdx'/><target dev='vdb'/></disk>", /passed through/],
    [file('vdb', '<transient/>'), /transient/],
    [file('vdb', '<shareable/>'), /shared/],
    [file('vdb', "<encryption format='luks'/>"), /encrypted/],
    ["<disk type='file'><source file='/x'><slices/></source><target dev='vdb'/></disk>", /a part/],
    ["<disk type='file'><target dev='vdb'/></disk>", /no image/],
    ["<disk type='volume'><source pool='p' volume='v'/><target dev='vdb'/></disk>", /is the pool active/],
  ])('refuses %s', (xml, reason) => {
    const selecting = () => select(file('vda') + xml);
    expect(selecting).toThrow(/^disk vdb of mail01 cannot be backed up: /);
    expect(selecting).toThrow(reason);
    expect(selecting).toThrow(
      expect.objectContaining({ kind: 'failed', hint: expect.stringContaining('--exclude=vdb') }),
    );
  });

  it('refuses a target that could not be the name of a directory', () => {
    expect(() => select("<disk type='file'><source file='/x'/><target dev='../x'/></disk>")).toThrow(
      /target/,
    );
  });

  it('an unknown name to exclude is a usage error', () => {
    expect(() => select(file('vda'), ['vdz'])).toThrow(
      expect.objectContaining({
        kind: 'usage',
        message: 'mail01 has no disk vdz to exclude',
        hint: 'its disks are vda',
      }),
    );
  });

  it('none left is an error', () => {
    expect(() => select(file('vda'), ['vda'])).toThrow(/mail01 has no disk to back up/);
  });
});

it('the undo handlers of all kinds are known', () => {
  expect(Object.keys(snapshotUndo).sort()).toEqual([
    'checkpoint',
    'hold',
    'lvm-snapshot',
    'memory',
    'overlay',
    'pause',
    'pool-metadata',
    'pull',
    'pull-job',
    'reflink-clone',
    'shutdown',
    'thaw',
  ]);
});
