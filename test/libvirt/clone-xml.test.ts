import { describe, expect, it } from 'vitest';
import type { CloneRequest } from '../../src/libvirt/clone-xml.js';
import { attribute, child, children, textOf } from '../../src/libvirt/xml.js';
import { clone, domain, image, NEW_UUID, OLD_UUID } from './clones.js';

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
    <graphics type='vnc' port='5901' autoport='no' websocket='5701' listen='127.0.0.1'/>
    <graphics type='spice' tlsPort='5902'/>
    <vsock model='virtio'><cid auto='no' address='3'/></vsock>`;
  const more = `<genid>43dc0cf8-809b-4adb-9bea-a9abb5f3d90e</genid>
    <sysinfo type='smbios'><system><entry name='serial'>s1</entry><entry name='uuid'>${OLD_UUID}</entry></system></sysinfo>`;

  it('a new one has nothing that may exist only once', () => {
    const { root, xml, notices } = clone(domain(devices, more, " id='7'"));
    expect(textOf(child(root, 'name'))).toBe('copy');
    expect(textOf(child(root, 'uuid'))).toBe(NEW_UUID);
    expect(xml).not.toContain(OLD_UUID);
    expect(attribute(root, 'id')).toBeUndefined();
    for (const trace of ['52:54', 'mail01', '5901', '5902', '5701', 'address=', '43dc0cf8'])
      expect(xml).not.toContain(trace);
    expect(child(root, 'genid')?.textContent).toBe('');
    const card = child(root, 'devices', 'interface')!;
    expect(attribute(child(card, 'source'), 'bridge')).toBe('br0');
    expect(attribute(child(root, 'devices', 'graphics'), 'autoport')).toBe('yes');
    expect(attribute(child(root, 'devices', 'vsock', 'cid'), 'auto')).toBe('yes');
    expect(xml).toContain('org.qemu.guest_agent.0');
    expect(xml).toContain('s1</entry>');
    expect(notices).toEqual([]);
  });

  const sockets = `<serial type='unix'><source mode='bind' path='/run/mail01.serial'/><target type='isa-serial' port='0'/></serial>
    <graphics type='vnc' socket='/run/mail01.vnc'><listen type='socket' socket='/run/mail01.vnc'/></graphics>
    <serial type='unix'><source mode='connect' path='/run/log.socket'/><target port='1'/></serial>`;

  it('a new one takes no sockets away from the other', () => {
    const { root, xml, notices } = clone(domain(sockets));
    expect(xml).not.toContain('/run/mail01');
    expect(xml).toContain('/run/log.socket');
    expect(attribute(child(root, 'devices', 'graphics', 'listen'), 'type')).toBe('socket');
    expect(children(child(root, 'devices')!, 'serial').map((one) => attribute(one, 'type'))).toEqual([
      'pty',
      'unix',
    ]);
    const what = 'a serial device had the socket /run/mail01.serial';
    expect(notices).toEqual([`${what}, and has a terminal of this host (pty) now`]);
  });

  it.each(['parallel', 'console', 'channel'])('a new one takes no socket of a %s device away', (name) => {
    const { xml, notices } = clone(
      domain(`<${name} type='unix'><source mode='bind' path='/run/x'/></${name}>`),
    );
    expect(xml).not.toContain('/run/x');
    expect(notices).toHaveLength(1);
  });

  it.each([
    ['server', '/run/vhost.sock.11111111'],
    ['client', '/run/vhost.sock'],
  ])('a new one has a vhost-user card as %s with the socket %s', (mode, expected) => {
    const source = `<source type='unix' path='/run/vhost.sock' mode='${mode}'/>`;
    const { root, notices } = clone(domain(`<interface type='vhostuser'>${source}</interface>`));
    expect(attribute(child(root, 'devices', 'interface', 'source'), 'path')).toBe(expected);
    const changed = `a network card had the socket /run/vhost.sock, and has ${expected} now`;
    expect(notices).toEqual(mode === 'server' ? [changed] : []);
  });

  it('the same one keeps all of it', () => {
    const same = { name: 'mail01', identity: { kind: 'same' } } as const;
    const { xml } = clone(domain(devices + sockets, more), same);
    for (const kept of [
      '/run/mail01.serial',
      'socket="/run/mail01.vnc"',
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
      <interface type='network'><source network='b'/><link state='up'/><link state='up'/></interface>`;
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
  /** The drive in a clone of a VM that has it, on a host that has the files called here.iso. */
  function keepDrive(device: string, type: string, source: string) {
    const xml = `<disk ${type} device='${device}'><driver name='qemu' type='raw'/>${source}<backingStore type='file'><source file='/b'/></backingStore><target dev='sda' bus='sata'/><readonly/></disk>`;
    const { root, notices } = clone(domain(xml), { exists: (path) => path.endsWith('here.iso') });
    const drive = child(root, 'devices', 'disk')!;
    expect(attribute(drive, 'device')).toBe(device);
    expect(child(drive, 'readonly')).toBeDefined();
    return { drive, notices };
  }

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
    [
      'cdrom',
      "type='file'",
      "<source file='/iso/gone.iso'/>",
      'the medium /iso/gone.iso',
      'is not on this host',
    ],
    ['cdrom', "type='block'", "<source dev='/dev/sr9'/>", 'the medium /dev/sr9', 'is not on this host'],
    ['cdrom', "type='block'", "<source file='/iso/here.iso'/>", 'the medium', 'is not on this host'],
    ['cdrom', "type='network'", "<source protocol='https' name='x'/>", 'the medium', 'is not on this host'],
    [
      'cdrom',
      "type='network'",
      "<source file='/iso/here.iso' protocol='nbd'/>",
      'the medium',
      'is not on this host',
    ],
    ['cdrom', "type='volume'", "<source pool='p' volume='v'/>", 'the medium', 'is not on this host'],
    ['cdrom', "type='file'", "<source file='here.iso'/>", 'the medium here.iso', 'is not on this host'],
    [
      'floppy',
      "type='file'",
      "<source file='/iso/gone.img'/>",
      'the medium /iso/gone.img',
      'could be written to',
    ],
    ['floppy', "type='file'", "<source file='/here.iso'/>", 'the medium /here.iso', 'could be written to'],
    ['floppy', "type='block'", "<source dev='/here.iso'/>", 'the medium /here.iso', 'could be written to'],
  ])('a %s (%s, %s) keeps its drive, which is empty then', (device, type, source, medium, why) => {
    const { drive, notices } = keepDrive(device, type, source);
    expect(child(drive, 'source')).toBeUndefined();
    expect(attribute(drive, 'type')).toBe('file');
    expect(notices).toEqual([`${medium} in drive sda ${why}: the drive is empty`]);
  });

  it.each([
    ['file', "file='/iso/here.iso'", "dev='/dev/vda'"],
    ['block', "dev='/dev/here.iso'", "file='/etc/shadow'"],
  ])('a CD of the host stays, by itself, and is told of: %s', (type, place, more) => {
    const given = `<source ${place} ${more} startupPolicy='optional'><slices/></source>`;
    const { drive, notices } = keepDrive('cdrom', `type='${type}'`, given);
    const source = `<source ${place} startupPolicy='optional'/>`.replaceAll("'", '"');
    expect(child(drive, 'source')?.toString()).toBe(source);
    expect([attribute(drive, 'type'), child(drive, 'backingStore')]).toEqual([type, undefined]);
    expect(notices).toEqual([`the guest sees ${place.split("'")[1]} of this host in drive sda`]);
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

  it('without a place is nothing to speak of', () => {
    expect(text("<nvram template='/t.fd'/>", {}).notices).toEqual([]);
  });

  it('of the original is the one that is told of', () => {
    const both = "<nvram type='block'>/nvram/text.fd<source dev='/dev/sda' file='/nvram/file.fd'/></nvram>";
    const { nvram, notices } = text(both, { identity: { kind: 'same' }, exists: () => true });
    expect(nvram).toBe('<nvram>/nvram/file.fd</nvram>');
    expect(notices).toEqual(['its NVRAM is not in the tree: it uses /nvram/file.fd, which is on this host']);
  });
});
