import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { ChunkmountError } from '../../src/errors.js';
import { diskSource, withDiskSource } from '../../src/libvirt/disk-source.js';
import { parseDomainXml, volumesIn } from '../../src/libvirt/domain-xml.js';
import { escapeXml } from '../../src/libvirt/xml.js';

const UUID = '590213d6-4648-4b40-be37-eb391696dce5';

function domain(devices: string, attributes = "type='kvm'", more = ''): string {
  return `<domain ${attributes}><name>mail01</name><uuid>${UUID}</uuid>${more}<devices>${devices}</devices></domain>`;
}

function diskOf(xml: string) {
  return parseDomainXml(domain(xml)).disks[0]!;
}

describe('parseDomainXml', () => {
  it('reads a live domain with a chain and a mirror', () => {
    const xml = domain(
      `<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/i/top' index='4'/>
       <backingStore type='file' index='3'><format type='qcow2'/><source file='/i/mid'/>
         <backingStore type='block'><format type='raw'/><source dev='/dev/vg/base'/><backingStore/></backingStore>
       </backingStore>
       <mirror type='file' job='active-commit' ready='yes'><format type='qcow2'/><source file='/i/mid'/></mirror>
       <target dev='vda' bus='virtio'/></disk>`,
      "type='kvm' id='7'",
      '<os><nvram>/var/lib/nvram/mail01.fd</nvram></os>',
    );
    expect(parseDomainXml(xml)).toEqual({
      name: 'mail01',
      uuid: UUID,
      active: true,
      nvram: '/var/lib/nvram/mail01.fd',
      disks: [
        {
          target: 'vda',
          bus: 'virtio',
          device: 'disk',
          type: 'file',
          path: '/i/top',
          format: 'qcow2',
          readonly: false,
          shareable: false,
          transient: false,
          encrypted: false,
          sliced: false,
          below: ['/i/mid', '/dev/vg/base'],
          backing: [
            { path: '/i/mid', format: 'qcow2' },
            { path: '/dev/vg/base', format: 'raw' },
          ],
          mirror: { job: 'active-commit', path: '/i/mid', ready: true },
        },
      ],
    });
  });

  it.each([
    ['+64055:+103', 64055],
    ['root:root', 0],
    ['107', 107],
    ['no-such-user:kvm', undefined],
  ])('reads the user that QEMU runs as: %s', (label, user) => {
    const labels = `<seclabel type='dynamic' model='apparmor'><label>libvirt-x</label></seclabel>
      <seclabel type='dynamic' model='dac'><label>${label}</label><imagelabel>+1:+1</imagelabel></seclabel>`;
    expect(parseDomainXml(domain('', "id='7'", labels)).qemuUser).toBe(user);
  });

  it.each([
    [
      'an empty drive',
      "<disk type='file' device='cdrom'><target dev='sda'/><readonly/></disk>",
      { device: 'cdrom', path: undefined, readonly: true },
    ],
    [
      'a network disk',
      "<disk type='network'><source protocol='nbd' name='x'/><target dev='vda'/></disk>",
      { type: 'network', path: undefined },
    ],
    [
      'a relative path',
      "<disk type='file'><source file='x.img'/><target dev='vda'/></disk>",
      { path: undefined },
    ],
    ['an unknown type', "<disk type='vhostuser'><target dev='vda'/></disk>", { type: 'other' }],
    [
      'encryption in the source',
      "<disk type='file'><source file='/x'><encryption format='luks'/></source><target dev='vda'/></disk>",
      { encrypted: true },
    ],
    [
      'encryption of the disk, as older libvirts write it',
      "<disk type='file'><source file='/x'/><target dev='vda'/><encryption format='luks'/></disk>",
      { encrypted: true },
    ],
    [
      'a chain with a layer of unknown format',
      "<disk type='file'><source file='/x'/><backingStore type='file'><source file='/y'/><backingStore/></backingStore><target dev='vda'/></disk>",
      { below: ['/y'], backing: undefined },
    ],
    ...['', "ready='pivot'", "ready='abort'"].map((ready): [string, string, object] => [
      `a mirror that is not to be pivoted to: ${ready}`,
      `<disk type='file'><source file='/x'/><mirror type='file' job='copy' ${ready}><source file='/y'/></mirror><target dev='vda'/></disk>`,
      { mirror: { job: 'copy', path: '/y', ready: false } },
    ]),
    [
      'a part of a file',
      "<disk type='file'><source file='/x'><slices><slice type='storage' offset='512' size='512'/></slices></source><target dev='vda'/></disk>",
      { path: '/x', sliced: true },
    ],
    [
      'flags',
      "<disk type='block'><source dev='/dev/x'/><target dev='vda'/><shareable/><transient/></disk>",
      { path: '/dev/x', shareable: true, transient: true },
    ],
    [
      'a chain of unknown end',
      "<disk type='file'><source file='/x'/><target dev='vda'/></disk>",
      { below: [], backing: undefined },
    ],
    [
      'a chain onto the network',
      "<disk type='file'><source file='/x'/><backingStore type='network'><format type='raw'/><source protocol='nbd'/><backingStore/></backingStore><target dev='vda'/></disk>",
      { below: [undefined], backing: undefined },
    ],
  ])('%s', (_, xml, expected) => {
    expect(diskOf(xml)).toMatchObject(expected);
  });

  it('knows of NVRAM that has a source', () => {
    const os = "<os><nvram type='file'><source file='/nvram.fd'/></nvram></os>";
    expect(parseDomainXml(domain('', '', os)).nvram).toBe('/nvram.fd');
  });

  it('asks where volumes lie', () => {
    const xml = domain("<disk type='volume'><source pool='p' volume='v &amp; w'/><target dev='vda'/></disk>");
    expect(volumesIn(xml)).toEqual([{ pool: 'p', volume: 'v & w' }]);
    expect(parseDomainXml(xml, () => '/pool/v').disks[0]).toMatchObject({ type: 'volume', path: '/pool/v' });
  });

  it.each([
    ['not XML', 'Domain not found'],
    ['cut off', domain('').slice(0, -12)],
    ['another root', `<network><name>x</name><uuid>${UUID}</uuid></network>`],
    ['no UUID', '<domain><name>x</name></domain>'],
    ['a UUID that is none', '<domain><name>x</name><uuid>../..</uuid></domain>'],
    ['a disk without target', domain("<disk type='file'/>")],
    ['a target twice', domain("<disk><target dev='vda'/></disk><disk><target dev='vda'/></disk>")],
    ['a document type', `<!DOCTYPE domain [<!ENTITY a SYSTEM "file:///etc/passwd">]>${domain('')}`],
    ['too long', domain(' '.repeat(5 * 1024 * 1024))],
  ])('refuses %s', (_, xml) => {
    expect(() => parseDomainXml(xml)).toThrow(ChunkmountError);
  });

  it('throws nothing but errors of ours, whatever it is given', () => {
    const piece = fc.constantFrom(
      '<disk',
      '>',
      '/>',
      "type='file'",
      '<source file="',
      '/x',
      '"',
      '<target dev="vda"/>',
      '</disk>',
      '&',
      '<!--',
      ']]>',
      '<backingStore>',
      '\0',
      '<?x ',
    );
    fc.assert(
      fc.property(fc.array(fc.oneof(piece, fc.string()), { maxLength: 12 }), (pieces) => {
        try {
          parseDomainXml(domain(pieces.join('')));
        } catch (error) {
          expect(error).toBeInstanceOf(ChunkmountError);
        }
      }),
      { numRuns: 500 },
    );
  });

  it('a path comes back as it was, whatever is in it', () => {
    const name = fc
      .string({ unit: 'grapheme', minLength: 1 })
      .filter((text) => !/[\p{Cc}\ufffe\uffff]/u.test(text));
    fc.assert(
      fc.property(name, (text) => {
        const file = `/${text}\t\u2028, "'<&>`;
        const xml = `<disk type='file'><source file='${escapeXml(file)}'/><target dev='vda'/></disk>`;
        expect(diskOf(xml).path).toBe(file);
      }),
    );
  });
});

describe('withDiskSource', () => {
  const before = domain(
    `
    <disk type='block' device='disk'>
      <driver name='qemu' type='raw' cache='none'/>
      <source dev='/dev/vg/a &amp; b'><seclabel model='dac' relabel='no'/></source>
      <target dev='vda' bus='virtio'/>
      <serial>S</serial>
    </disk>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/b'/><target dev='vdb'/></disk>
  `,
    "xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0' type='kvm'",
    '<metadata><a:b xmlns:a="urn:a">x</a:b></metadata><qemu:commandline><qemu:arg value="-x"/></qemu:commandline>',
  );
  const onOverlay = domain(
    `
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' cache='none'/>
      <source file='/overlay'/>
      <backingStore type='block'><format type='raw'/><source dev='/dev/vg/a'/></backingStore>
      <target dev='vda' bus='virtio'/>
      <serial>S</serial>
    </disk>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/b'/><target dev='vdb'/></disk>
  `,
    "xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0' type='kvm'",
    '<metadata><a:b xmlns:a="urn:a">x</a:b></metadata><qemu:commandline><qemu:arg value="-x"/></qemu:commandline>',
  );

  it('puts back what diskSource took, and changes nothing else', () => {
    const after = withDiskSource(onOverlay, 'vda', diskSource(before, 'vda'));
    const squeeze = (xml: string) => xml.replace(/\s+/g, ' ').replaceAll('"', "'");
    expect(squeeze(after)).toBe(squeeze(before));
  });

  it('keeps a backing store that somebody had written', () => {
    const after = withDiskSource(before, 'vda', diskSource(onOverlay, 'vda'));
    expect(diskSource(after, 'vda')).toEqual(diskSource(onOverlay, 'vda'));
  });

  it.each(["<driver name='qemu' type='raw'/>", "<driver name='qemu'/>"])(
    'puts back the format that was there: %s',
    (driver) => {
      const disk = (more: string) =>
        domain(`<disk type='file'>${more}<source file='/x'/><target dev='vda'/></disk>`);
      for (const other of [disk("<driver name='qemu' type='qcow2'/>"), disk('')]) {
        const after = withDiskSource(other, 'vda', diskSource(disk(driver), 'vda'));
        expect(diskSource(after, 'vda')).toEqual(diskSource(disk(driver), 'vda'));
      }
    },
  );

  it('throws for a disk that is not there or has no image', () => {
    expect(() => diskSource(before, 'vdc')).toThrow('no disk vdc');
    expect(() => diskSource(domain("<disk><target dev='sda'/></disk>"), 'sda')).toThrow('no image');
  });
});

describe('escapeXml', () => {
  it.each(['\0', '\u001f', '\ufffe', '\uffff'])('refuses what XML cannot hold: %j', (character) => {
    expect(() => escapeXml(`/a${character}`)).toThrow('XML cannot hold');
  });
});
