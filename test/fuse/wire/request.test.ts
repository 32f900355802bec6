import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { IN_HEADER_LENGTH } from '../../../src/fuse/wire/protocol.js';
import { Request } from '../../../src/fuse/wire/request.js';
import { encode, IN_HEADER, lengthOf } from './layouts.js';

function parsed(bytes: Uint8Array, received = bytes.length): { request: Request; whole: boolean } {
  const request = new Request(Buffer.alloc(8192, 0xee));
  request.bytes.set(bytes);
  return { request, whole: request.parse(received) };
}

function message(opcode: number, payload: Uint8Array, nodeid: bigint | number = 1): Buffer {
  const len = lengthOf(IN_HEADER) + payload.length;
  return Buffer.concat([encode(IN_HEADER, { len, opcode, unique: 9, nodeid }), payload]);
}

describe('Request', () => {
  it('takes the header apart', () => {
    expect(lengthOf(IN_HEADER)).toBe(IN_HEADER_LENGTH);
    const { request, whole } = parsed(message(15, Buffer.alloc(40), 2 ** 51 - 1));
    expect(whole).toBe(true);
    expect([request.length, request.opcode, request.inode]).toEqual([80, 15, 2 ** 51 - 1]);
    expect([request.has(40), request.has(41)]).toEqual([true, false]);
  });

  it.each([0, 1, 39])('is none if only %i bytes came', (received) => {
    expect(parsed(message(3, Buffer.alloc(16)), received).whole).toBe(false);
  });

  it('is none if its length is not what came', () => {
    const bytes = message(3, Buffer.alloc(16));
    expect(parsed(bytes, bytes.length - 1).whole).toBe(false);
    expect(parsed(bytes, bytes.length + 1).whole).toBe(false);
  });

  it('ends a string at its NUL, or where the request ends', () => {
    const name = (bytes: string) => parsed(message(1, Buffer.from(bytes))).request.string(IN_HEADER_LENGTH);
    expect(name('vda\0rest')).toBe('vda');
    expect(name('vda')).toBe('vda');
    expect(name('\0')).toBe('');
    expect(name('')).toBe('');
    expect(name(`${'x'.repeat(1024)}\0`)).toBe('x'.repeat(1024));
    expect(name('ü€𝄞\0')).toBe('ü€𝄞');
  });

  it('does not read a string on into what an earlier request left behind', () => {
    const request = new Request(Buffer.alloc(8192));
    const first = message(1, Buffer.from('a-long-secret-name\0'));
    request.bytes.set(first);
    request.parse(first.length);
    const second = message(1, Buffer.from('short'));
    request.bytes.set(second);
    request.parse(second.length);
    expect(request.string(IN_HEADER_LENGTH)).toBe('short');
  });

  it('reads any 64-bit number up to 2^53 exactly', () => {
    fc.assert(
      fc.property(fc.maxSafeNat(), (number) => {
        expect(parsed(message(3, Buffer.alloc(0), number)).request.inode).toBe(number);
      }),
    );
  });

  it('makes something finite of those above', () => {
    expect(parsed(message(3, Buffer.alloc(0), 2n ** 64n - 1n)).request.inode).toBe(2 ** 64);
  });
});
