import { describe, expect, it } from 'vitest';
import { hostReach } from '../../src/libvirt/host-reach.js';
import { child, parseXml, rootOf } from '../../src/libvirt/xml.js';

function domain(devices: string, more = '', attributes = ''): string {
  return `<domain type='kvm'${attributes}>${more}<devices>${devices}</devices></domain>`;
}

function reach(xml: string, exists: (path: string) => boolean): string[] {
  return hostReach(rootOf(parseXml(xml, 'domain')), exists);
}

describe('what reaches into the host', () => {
  const QEMU = " xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'";

  it.each([
    [
      'arguments for QEMU, whatever the prefix',
      domain(
        '',
        "<q:commandline><q:arg value='-fw_cfg'/><q:arg value='x'/><q:env name='A' value='b'/></q:commandline>",
        QEMU,
      ),
      'it gives QEMU arguments of its own: "A=b -fw_cfg x"',
    ],
    [
      'qemu:override',
      domain('', '<q:override><q:device alias="x"/></q:override>', QEMU),
      'it changes what libvirt tells QEMU (qemu:override)',
    ],
    [
      'an unusual emulator',
      domain('<emulator>/opt/here/qemu</emulator>'),
      'it runs /opt/here/qemu as its emulator',
    ],
    [
      'a script',
      domain("<interface type='ethernet'><script path='/etc/evil'/></interface>"),
      'a network card runs /etc/evil on this host',
    ],
    [
      'a script for the end',
      domain("<interface type='ethernet'><downscript path='/etc/evil'/></interface>"),
      'a network card runs /etc/evil on this host',
    ],
    [
      'an image as a directory',
      domain("<filesystem type='file'><source file='/srv.img'/><target dir='x'/></filesystem>"),
      'the guest sees the directory /srv.img of this host',
    ],
    [
      'a device as a directory',
      domain("<filesystem type='block'><source dev='/dev/sdx'/><target dir='x'/></filesystem>"),
      'the guest sees the directory /dev/sdx of this host',
    ],
    [
      'a directory',
      domain("<filesystem type='mount'><source dir='/srv'/><target dir='x'/></filesystem>"),
      'the guest sees the directory /srv of this host',
    ],
    [
      'memory that lasts',
      domain("<memory model='nvdimm'><source><path>/var/lib/nv</path></source><target/></memory>"),
      'a memory module of the guest is /var/lib/nv of this host',
    ],
    [
      'what is kept in a TPM',
      domain("<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>"),
      'what the guest kept in its TPM, such as keys of its disk encryption, is not in the backup',
    ],
    [
      'a TPM',
      domain("<tpm><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>"),
      'its TPM is /dev/tpm0 of this host',
    ],
    [
      'a TPM of its own program',
      domain("<tpm><backend type='external'><source type='unix' path='/run/tpm'/></backend></tpm>"),
      'its TPM is /run/tpm of this host',
    ],
    [
      'a device',
      domain("<hostdev mode='subsystem' type='pci'><source/></hostdev>"),
      'the guest is given a device of this host (pci)',
    ],
    [
      'a file',
      domain("<serial type='file'><source path='/etc/cron.d/x'/></serial>"),
      'a serial device writes to /etc/cron.d/x',
    ],
    [
      'a device for characters',
      domain("<smartcard type='dev'><source path='/dev/ttyS0'/></smartcard>"),
      'a smartcard device writes to /dev/ttyS0',
    ],
    [
      'a pipe',
      domain("<redirdev bus='usb' type='pipe'><source path='/run/pipe'/></redirdev>"),
      'a redirdev device writes to /run/pipe',
    ],
    [
      'a log',
      domain("<console type='pty'><log file='/etc/cron.d/x'/></console>"),
      'a console device writes to /etc/cron.d/x',
    ],
    ['no confinement', domain('', "<seclabel type='none'/>"), 'its QEMU is not confined (seclabel none)'],
    ...['loader', 'kernel', 'initrd', 'dtb'].map((name) => [
      `${name}: not there`,
      domain('', `<os><${name}>/boot/gone</${name}></os>`),
      `its ${name} /boot/gone is not on this host: install it, or change the path (virsh edit)`,
    ]),
  ] as [string, string, string][])('is told: %s', (_, xml, notice) => {
    expect(reach(xml, (path) => path.includes('here'))).toEqual([notice]);
  });

  it.each(['/usr/libexec/qemu-kvm', '/opt/qemu'])(
    'an emulator that is not there gives way to that of libvirt: %s',
    (emulator) => {
      const root = rootOf(parseXml(domain(`<emulator>${emulator}</emulator>`), 'domain'));
      const notices = hostReach(root, () => false);
      expect(child(root, 'devices', 'emulator')).toBeUndefined();
      expect(notices).toEqual([`its emulator ${emulator} is not on this host: libvirt takes its own`]);
    },
  );

  it('an ordinary VM has nothing of the kind', () => {
    const devices = `<emulator>/usr/bin/qemu-system-x86_64</emulator><serial type='pty'/><console type='pty'/>
      <channel type='unix'><target name='org.qemu.guest_agent.0'/></channel><rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>`;
    expect(reach(domain(devices, '<os><loader>/here</loader></os>'), () => true)).toEqual([]);
  });
});
