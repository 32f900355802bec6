import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { type CloneRequest, cloneXml } from '../../src/libvirt/clone-xml.js';
import { attribute, child, children, escapeXml, parseXml, rootOf, textOf } from '../../src/libvirt/xml.js';

const OLD_UUID = 'c7a5fdbd-edaf-9455-926a-d65c16db1809';
const NEW_UUID = '11111111-2222-4333-8444-555555555555';

function domain(devices: string, more = '', attributes = ''): string {
  return `<domain type='kvm'${attributes}>
  <name>mail01</name>
  <uuid>${OLD_UUID}</uuid>
  <memory unit='KiB'>1048576</memory>
  ${more}
  <devices>${devices}</devices>
</domain>`;
}

const DEFAULTS: CloneRequest = {
  name: 'copy',
  identity: { kind: 'new', uuid: NEW_UUID },
  disks: [],
  nvram: undefined,
  network: true,
  exists: () => false,
};

function clone(xml: string, request: Partial<CloneRequest> = {}) {
  const { xml: result, notices } = cloneXml(xml, { ...DEFAULTS, ...request });
  return { root: rootOf(parseXml(result, 'domain')), notices, xml: result };
}

const image = (target: string, format: 'raw' | 'qcow2' = 'raw', overlay = false) => ({
  target,
  file: `/images/copy-${target}.${format}`,
  format,
  overlay,
});

/** The one disk of a clone, as text without white space between elements. */
function disk(xml: string, request: Partial<CloneRequest> = {}) {
  const { root, notices } = clone(domain(xml), { disks: [image('vda')], ...request });
  const [first] = children(child(root, 'devices')!, 'disk');
  return { text: first?.toString().replace(/>\s+</g, '><'), notices };
}

describe('who the clone is', () => {
  const devices = `<interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='br0'/>
    <virtualport type='openvswitch'><parameters interfaceid='${OLD_UUID}'/></virtualport>
    <target dev='mail01-net'/><model type='virtio'/></interface>
    <channel type='unix'><source mode='bind' path='/var/lib/libvirt/qemu/mail01.agent'/><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <graphics type='vnc' port='5901' autoport='no' listen='127.0.0.1'/>
    <vsock model='virtio'><cid auto='no' address='3'/></vsock>`;
  const more = `<genid>43dc0cf8-809b-4adb-9bea-a9abb5f3d90e</genid>
    <sysinfo type='smbios'><system><entry name='serial'>s1</entry><entry name='uuid'>${OLD_UUID}</entry></system></sysinfo>`;

  it('a new one has nothing that may exist only once', () => {
    const { root, xml, notices } = clone(domain(devices, more, " id='7'"));
    expect(textOf(child(root, 'name'))).toBe('copy');
    expect(textOf(child(root, 'uuid'))).toBe(NEW_UUID);
    expect(xml).not.toContain(OLD_UUID);
    expect(attribute(root, 'id')).toBeUndefined();
    for (const trace of ['52:54', 'mail01', '5901', 'address=', '43dc0cf8']) expect(xml).not.toContain(trace);
    expect(child(root, 'genid')?.textContent).toBe('');
    const card = child(root, 'devices', 'interface')!;
    expect(attribute(child(card, 'source'), 'bridge')).toBe('br0');
    expect(attribute(child(root, 'devices', 'graphics'), 'autoport')).toBe('yes');
    expect(attribute(child(root, 'devices', 'vsock', 'cid'), 'auto')).toBe('yes');
    expect(xml).toContain('org.qemu.guest_agent.0');
    expect(xml).toContain('s1</entry>');
    expect(notices).toEqual([]);
  });

  it('the same one keeps all of it', () => {
    const { xml } = clone(domain(devices, more), { name: 'mail01', identity: { kind: 'same' } });
    for (const kept of [
      '52:54:00:00:00:01',
      'mail01-net',
      'mail01.agent',
      '5901',
      '43dc0cf8',
      'address="3"',
    ]) {
      expect(xml).toContain(kept);
    }
    expect(xml.split(OLD_UUID)).toHaveLength(4);
  });

  it('can have its network cables unplugged, also one that was plugged in', () => {
    const cards = `<interface type='network'><source network='a'/></interface>
      <interface type='network'><source network='b'/><link state='up'/></interface>`;
    const { root } = clone(domain(cards), { network: false });
    const links = children(child(root, 'devices')!, 'interface').map((card) =>
      children(card, 'link').map((link) => attribute(link, 'state')),
    );
    expect(links).toEqual([['down'], ['down']]);
  });

  it('gets a name and a UUID although the XML has none', () => {
    const { root } = clone("<domain type='kvm'><devices/></domain>");
    expect(textOf(child(root, 'name'))).toBe('copy');
    expect(textOf(child(root, 'uuid'))).toBe(NEW_UUID);
  });
});

describe('a disk of the tree', () => {
  it.each([
    [
      'a file',
      "<disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='none' io='native'/><source file='/old'/>",
    ],
    [
      'a block device',
      "<disk type='block' device='disk'><driver name='qemu' type='raw' cache='none' io='native'/><source dev='/dev/vg/old'/>",
    ],
    [
      'a volume',
      "<disk type='volume' device='disk'><driver name='qemu' type='raw' cache='none' io='native'/><source pool='p' volume='v'/>",
    ],
    [
      'on the network, with a secret',
      `<disk type='network' device='disk'><driver name='qemu' type='raw' cache='none' io='native'/><auth username='u'><secret type='ceph' uuid='${OLD_UUID}'/></auth>
       <source protocol='rbd' name='pool/old'><host name='ceph' port='6789'/><encryption format='luks'/></source>`,
    ],
    [
      'encrypted, in the middle of a copy, on a chain',
      `<disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='none' io='native'/><source file='/old' index='2'/>
       <backingStore type='file'><format type='raw'/><source file='/base'/><backingStore/></backingStore>
       <mirror type='file' job='copy'><source file='/mirror'/></mirror><encryption format='luks'><secret type='passphrase' uuid='${OLD_UUID}'/></encryption>`,
    ],
  ])('that was %s is the file given, and all else of it is kept', (_, start) => {
    const rest =
      "<target dev='vda' bus='virtio'/><iotune><total_iops_sec>5</total_iops_sec></iotune><serial>s</serial><boot order='1'/>";
    const { text, notices } = disk(`${start}${rest}</disk>`);
    expect(text).toBe(
      '<disk type="file" device="disk"><driver name="qemu" type="raw" cache="none" io="native"/><source file="/images/copy-vda.raw"/>' +
        rest.replaceAll("'", '"') +
        '</disk>',
    );
    expect(notices).toEqual([]);
  });

  it('gets a driver when it has none', () => {
    const { text } = disk("<disk type='file'><source file='/old'/><target dev='vda'/></disk>", {
      disks: [image('vda', 'qcow2')],
    });
    expect(text).toBe(
      '<disk type="file"><driver name="qemu" type="qcow2"/><source file="/images/copy-vda.qcow2"/><target dev="vda"/></disk>',
    );
  });

  it('that was a whole SCSI device is an ordinary disk', () => {
    const { text, notices } = disk(
      "<disk type='block' device='lun' sgio='unfiltered' rawio='yes'><driver name='qemu' type='raw'/><source dev='/dev/sdx'><reservations managed='yes'/></source><target dev='vda' bus='scsi'/></disk>",
    );
    expect(text).toBe(
      '<disk type="file" device="disk"><driver name="qemu" type="raw"/><source file="/images/copy-vda.raw"/><target dev="vda" bus="scsi"/></disk>',
    );
    expect(notices).toEqual(['disk vda was a SCSI device of the host, and is an ordinary disk now']);
  });

  it.each([
    ['raw', false, true, true],
    ['qcow2', false, false, true],
    ['qcow2', true, false, false],
  ] as const)(
    '%s, overlay %s: shareable kept %s, transient kept %s',
    (format, overlay, shareable, transient) => {
      const xml = "<disk type='file'><source file='/old'/><target dev='vda'/><shareable/><transient/></disk>";
      const { text, notices } = disk(xml, { disks: [image('vda', format, overlay)] });
      expect(text?.includes('<shareable/>')).toBe(shareable);
      expect(text?.includes('<transient/>')).toBe(transient);
      expect(notices).toHaveLength(shareable ? 0 : 1);
    },
  );

  it('that the XML does not have is named', () => {
    const { notices } = clone(domain(''), { disks: [image('vda')] });
    expect(notices).toEqual(['the domain XML has no disk vda: /images/copy-vda.raw belongs to no VM']);
  });
});

describe('what the tree does not have', () => {
  it('a disk is taken out', () => {
    const devices = `<disk type='file' device='disk'><source file='/a'/><target dev='vda'/></disk>
      <disk type='network' device='disk'><source protocol='nbd'/><target dev='vdb'/></disk>
      <disk type='block' device='lun'><source dev='/dev/sdx'/><target dev='sda'/></disk>`;
    const { root, notices } = clone(domain(devices), { disks: [image('vda')] });
    const targets = children(child(root, 'devices')!, 'disk').map((one) =>
      attribute(child(one, 'target'), 'dev'),
    );
    expect(targets).toEqual(['vda']);
    expect(notices).toEqual([
      'disk vdb is not in the tree, and is taken out',
      'disk sda is not in the tree, and is taken out',
    ]);
  });

  it.each([
    ['cdrom', "type='file'", "<source file='/iso/here.iso'/>", true],
    ['cdrom', "type='file'", "<source file='/iso/gone.iso'/>", false],
    ['cdrom', "type='block'", "<source dev='/dev/sr9'/>", false],
    ['cdrom', "type='network'", "<source protocol='https' name='x'/>", false],
    ['cdrom', "type='volume'", "<source pool='p' volume='v'/>", false],
    ['cdrom', "type='file'", "<source file='relative/here.iso'/>", false],
    ['floppy', "type='file'", "<source file='/iso/gone.img'/>", false],
  ])('a %s (%s, %s) keeps its drive; its medium stays: %s', (device, type, source, stays) => {
    const xml = `<disk ${type} device='${device}'><driver name='qemu' type='raw'/>${source}<backingStore/><target dev='sda' bus='sata'/><readonly/></disk>`;
    const { root, notices } = clone(domain(xml), { exists: (path) => path.endsWith('here.iso') });
    const drive = child(root, 'devices', 'disk')!;
    expect(attribute(drive, 'device')).toBe(device);
    expect(child(drive, 'readonly')).toBeDefined();
    expect(child(drive, 'source') !== undefined).toBe(stays);
    expect(attribute(drive, 'type')).toBe('file');
    expect(notices).toHaveLength(stays ? 0 : 1);
    if (!stays) expect(notices[0]).toMatch(/in drive sda is not on this host: the drive is empty$/);
  });

  it('an empty drive is nothing to speak of', () => {
    const { notices } = clone(domain("<disk type='file' device='cdrom'><target dev='sda'/></disk>"));
    expect(notices).toEqual([]);
  });
});

describe('NVRAM', () => {
  const os = (nvram: string) => `<os><type>hvm</type>${nvram}</os>`;
  const old = "<nvram template='/t.fd'>/nvram/mail01_VARS.fd</nvram>";
  const text = (xml: string, request: Partial<CloneRequest>) => {
    const { root, notices } = clone(domain('', os(xml)), request);
    return { nvram: child(root, 'os', 'nvram')?.toString(), notices };
  };

  it.each([old, "<nvram template='/t.fd' type='file'><source file='/nvram/mail01_VARS.fd'/></nvram>"])(
    'of the tree takes the place of %s',
    (xml) => {
      expect(text(xml, { nvram: '/images/copy_VARS.fd' })).toEqual({
        nvram: '<nvram template="/t.fd">/images/copy_VARS.fd</nvram>',
        notices: [],
      });
    },
  );

  it('of the tree is named where libvirt had chosen the place', () => {
    expect(text('', { nvram: '/images/copy_VARS.fd' }).nvram).toBe('<nvram>/images/copy_VARS.fd</nvram>');
  });

  it('of the original is never used by a new VM', () => {
    const { nvram, notices } = text(old, { exists: () => true });
    expect(nvram).toBe('<nvram template="/t.fd"/>');
    expect(notices).toEqual([
      'its NVRAM /nvram/mail01_VARS.fd is not in the tree: its firmware begins with an empty one',
    ]);
  });

  it('of the original is used by the same VM, if it is there', () => {
    const { nvram } = text(old, { identity: { kind: 'same' }, exists: () => true });
    expect(nvram).toContain('/nvram/mail01_VARS.fd');
    expect(text(old, { identity: { kind: 'same' } }).nvram).toBe('<nvram template="/t.fd"/>');
  });
});

describe('XML that is not to be trusted', () => {
  it.each([
    ['nothing', ''],
    ['another document', '<network/>'],
    ['cut off', domain('<disk>').slice(0, 60)],
    ['with entities', `<!DOCTYPE domain [<!ENTITY a SYSTEM 'file:///etc/shadow'>]>${domain('&a;')}`],
    ['a disk without a target', domain("<disk type='file'/>")],
    ['two disks of one target', domain("<disk><target dev='vda'/></disk><disk><target dev='vda'/></disk>")],
    [
      'devices twice',
      domain(
        '',
        "<devices><disk type='file'><source file='/etc/shadow'/><target dev='vdz'/></disk></devices>",
      ),
    ],
    ['devices twice, in another namespace', domain('', "<x:devices xmlns:x='x'/>")],
    ['os twice', domain('', '<os/><os><kernel>/etc/shadow</kernel></os>')],
    ['memory twice', domain('', "<memory unit='TiB'>1</memory>")],
    [
      "QEMU's arguments twice",
      domain(
        '',
        '<q:commandline/><r:commandline/>',
        " xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0' xmlns:r='http://libvirt.org/schemas/domain/qemu/1.0'",
      ),
    ],
    ['NVRAM twice', domain('', "<os><nvram/><nvram><source file='/etc/shadow'/></nvram></os>")],
    ['two emulators', domain('<emulator>/gone</emulator><emulator>/here</emulator>')],
    [
      'two drivers of a disk',
      domain("<disk><driver type='raw'/><driver type='qcow2'/><target dev='vda'/></disk>"),
    ],
  ])('is refused: %s', (_, xml) => {
    expect(() => clone(xml)).toThrow(/XML/);
  });

  it('what libvirt writes several times may be there several times', () => {
    const more = `<os><boot dev='hd'/><boot dev='network'/><initarg>a</initarg><initarg>b</initarg></os>
      <sysinfo type='smbios'/><sysinfo type='fwcfg'/><seclabel model='dac'/><seclabel model='apparmor'/>
      <metadata><a xmlns='a'/><a xmlns='b'/></metadata>`;
    expect(clone(domain('', more)).notices).toEqual([]);
  });

  const texts = fc.string({ unit: 'grapheme', maxLength: 12 }).filter((text) => {
    try {
      escapeXml(text);
      return true;
    } catch {
      return false;
    }
  });
  const FLAGS = ['shareable', 'transient'];
  const targets = fc.constantFrom('vda', 'vdb', 'sda', 'hdc', 'fda');
  const disks = fc.uniqueArray(
    fc.record({
      target: targets,
      device: fc.constantFrom('disk', 'cdrom', 'floppy', 'lun', undefined),
      type: fc.constantFrom('file', 'block', 'network', 'volume', 'dir', 'nvme', 'vhostuser'),
      source: texts,
      extra: fc.subarray(['backingStore', 'mirror', 'auth', 'encryption', 'shareable', 'transient']),
    }),
    { selector: ({ target }) => target },
  );

  it('every disk of a clone is on an image that was given, or a drive; nothing else of it leads anywhere', () => {
    fc.assert(
      fc.property(
        disks,
        fc.nat(5),
        fc.subarray(['vda', 'vdb', 'sda']),
        texts,
        (given, second, held, name) => {
          const all = given.map(
            ({ target, device, type, source, extra }) =>
              `<disk type='${type}'${device === undefined ? '' : ` device='${device}'`}><source file='SECRET${escapeXml(source)}'/>
             <target dev='${target}'/>${extra.map((one) => (FLAGS.includes(one) ? `<${one}/>` : `<${one}><source file='SECRET'/></${one}>`)).join('')}</disk>`,
          );
          const images = held.map((target) => image(target));
          const request = { name: name === '' ? 'x' : name, disks: images };
          // libvirt takes the disks of a second <devices>, too.
          const more = all.slice(second);
          if (more.length > 0) {
            const xml = domain(all.slice(0, second).join(''), `<devices>${more.join('')}</devices>`);
            expect(() => clone(xml, request)).toThrow(/more than one <devices>/);
          }
          const { root, xml: result } = clone(domain(all.join('')), request);
          expect(result).not.toContain('SECRET');
          for (const one of root.getElementsByTagName('disk')) {
            const target = attribute(child(one, 'target'), 'dev');
            const expected = images.find((candidate) => candidate.target === target);
            expect(attribute(child(one, 'source'), 'file')).toBe(expected?.file);
            expect(attribute(one, 'type')).toBe('file');
          }
          expect(child(root, 'name')?.textContent).toBe(name === '' ? 'x' : name);
        },
      ),
    );
  });

  it('a clone of a clone is the same', () => {
    fc.assert(
      fc.property(disks, (given) => {
        const xml = domain(
          given
            .map(
              ({ target, device = 'disk', type }) =>
                `<disk type='${type}' device='${device}'><source file='/x'/><target dev='${target}'/></disk>`,
            )
            .join(''),
        );
        const request = { ...DEFAULTS, disks: [image('vda', 'qcow2')] };
        const once = cloneXml(xml, request).xml;
        expect(cloneXml(once, request).xml).toBe(once);
      }),
    );
  });
});
