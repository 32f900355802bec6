import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { cloneXml } from '../../src/libvirt/clone-xml.js';
import { attribute, child, escapeXml } from '../../src/libvirt/xml.js';
import { clone, DEFAULTS, domain, image } from './clones.js';

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
    const more = `<os><boot dev='hd'/><boot dev='network'/><initarg>a</initarg><initarg>b</initarg>
        <initenv name='a'>1</initenv><initenv name='b'>2</initenv></os>
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
