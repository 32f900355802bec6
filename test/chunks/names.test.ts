import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { checkName, isName, isTarget } from '../../src/chunks/names.js';
import { ChunkmountError } from '../../src/errors.js';

describe('checkName', () => {
  it.each(['mail01', 'a', '_x', 'Win-2019_r2', 'vm.example.org', 'a+b@c:d', 'x'.repeat(128)])(
    'accepts %s',
    (name) => {
      expect(checkName(name)).toBe(name);
    },
  );

  it.each([
    ['', '"" cannot be the name of a tree: it is empty'],
    ['x'.repeat(129), `"${'x'.repeat(129)}" cannot be the name of a tree: it is longer than 128 characters`],
    ['..', /^"\.\." cannot be the name of a tree: only letters, digits/],
    ['.', /only letters/],
    ['.hidden', /only letters/],
    ['-rf', /only letters/],
    ['a/b', /only letters/],
    ['/', /only letters/],
    ['a b', /only letters/],
    ['mail01\n', /^"mail01\\n" cannot/],
    ['a\0b', /^"a\\u0000b" cannot/],
    ['a,b', /only letters/],
    ['\x1b[2J', /^"\\u001b\[2J" cannot/],
    ['straße', /only letters/],
  ])('refuses %j', (name, message) => {
    let error: unknown;
    try {
      checkName(name);
    } catch (caught) {
      error = caught;
    }
    expect(error).toBeInstanceOf(ChunkmountError);
    const { kind, message: text, hint } = error as ChunkmountError;
    expect(kind).toBe('usage');
    if (typeof message === 'string') expect(text).toBe(message);
    else expect(text).toMatch(message);
    expect(hint).toContain('virsh domrename');
  });

  const mostlyPlain = fc.oneof(fc.constantFrom(...'a0_.+@:-/ \n'), fc.string({ minLength: 1, maxLength: 1 }));

  it('accepts nothing that leaves its directory or needs quoting', () => {
    fc.assert(
      fc.property(fc.string({ unit: mostlyPlain, maxLength: 4 }), (name) => {
        if (!isName(name)) return;
        expect(name).toMatch(/^[\w.+@:-]{1,128}$/);
        expect(name).not.toMatch(/^[.+@:-]/);
      }),
      { numRuns: 5000 },
    );
  });
});

describe('isTarget', () => {
  it.each(['vda', 'sdaa', 'hdb', 'disk0', 'disk12', 'a', 'a123456789012345'])('accepts %s', (target) => {
    expect(isTarget(target)).toBe(true);
  });

  it.each(['', 'Vda', '0vd', 'vd a', 'vd/a', '..', 'vda\n', 'a1234567890123456', 'manifest.json'])(
    'refuses %j',
    (target) => {
      expect(isTarget(target)).toBe(false);
    },
  );
});
