import * as fs from 'node:fs';
import * as fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { HELPER_PROFILE, mayRead } from '../../src/libvirt/apparmor.js';

/** The kinds of rules that libvirt's profile has. */
const PROFILE = `
profile virt-aa-helper /usr/lib/libvirt/virt-aa-helper {
  #include <abstractions/base>
  capability dac_override,
  deny /dev/vd* r,
  audit deny @{HOME}/.*/** mrwkl,
  @{HOME}/** r,
  /{media,mnt,opt,srv}/** r,
  /var/lib/libvirt/images/** r,
  /**.img r,
  /**.qcow{,2} r,
  /**.[iI][sS][oO] r,
  /**/disk{,.*} r,
  /etc/apparmor.d/libvirt/* rw,
  /write/only w,
  /odd/[z-a]* r,
`;

describe("AppArmor's rules", () => {
  it.each([
    '/srv/vm/mail01',
    '/root/vm/mail01',
    '/home/someone/mail01',
    '/var/lib/libvirt/images/a/b',
    '/data/x.img',
    '/data/x.qcow',
    '/data/x.qcow2',
    '/data/x.ISO',
    '/data/7/disk',
    '/data/7/disk.1',
    '/etc/apparmor.d/libvirt/x',
  ])('let %s be read', (file) => {
    expect(mayRead(PROFILE, file)).toBe(true);
  });

  it.each([
    '/data/mail01',
    '/data/x.qcow3',
    '/data/x.vmdk',
    '/data/diskette',
    '/root/.cache/x.img',
    '/dev/vda',
    '/home/x',
    '/etc/apparmor.d/libvirt/a/b',
    '/write/only',
    '/odd/z',
    '/dataximg',
  ])('do not let %s be read', (file) => {
    expect(mayRead(PROFILE, file)).toBe(false);
  });

  it('let what the administrator adds be read', () => {
    expect(mayRead(`${PROFILE}\n/data/** r,`, '/data/mail01')).toBe(true);
  });

  it("are understood as they are in libvirt's package", () => {
    const profile = fs.readFileSync(HELPER_PROFILE, 'utf8');
    expect(mayRead(profile, '/var/lib/libvirt/images/mail01')).toBe(true);
    expect(mayRead(profile, '/backup/overlays/vda.cm-x.qcow2')).toBe(true);
    expect(mayRead(profile, '/backup/mail01')).toBe(false);
  });

  it('of any text are no reason to fail', () => {
    const pieces = fc.constantFrom(
      '/',
      '{',
      '}',
      ',',
      '[',
      ']',
      '*',
      '**',
      '@{HOME}',
      'a',
      '\\',
      '(',
      ' r,\n',
    );
    fc.assert(
      fc.property(fc.array(pieces, { maxLength: 20 }), (parts) => {
        expect(typeof mayRead(`/${parts.join('')} r,`, '/a/b')).toBe('boolean');
      }),
    );
  });
});
