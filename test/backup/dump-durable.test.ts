import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { temporaryDirectory, writeRaw } from '../support/images.js';
import { build, program, requireAll } from '../support/requirements.js';
import { durableCalls } from '../support/system-calls.js';

const MIB = 1024 * 1024;
const OWNER = { uid: process.getuid!(), gid: process.getgid!() };

let root: string;

beforeAll(() => requireAll(build, program('strace'), program('gzip'), program('qemu-img', 'qemu-utils')));
beforeEach(() => {
  root = temporaryDirectory();
});

afterEach(() => fs.rmSync(root, { recursive: true }));

describe('an image of a dump is on the disk when it counts as complete', () => {
  it.each([
    ['raw', false],
    ['raw', true],
    ['qcow2', false],
    ['qcow2', true],
  ])('%s, compressed: %s', async (format, compressed) => {
    const image = writeRaw(path.join(root, 'vda.raw'), MIB);
    const code = `import { dumpImage } from 'build/backup/dump/image.js';
      import { findCompressor } from 'build/backup/dump/compressor.js';
      import { ExtentMapBuilder } from 'build/image/extent-map-builder.js';
      import { silentReporter as reporter } from 'build/report/reporter.js';
      const map = new ExtentMapBuilder();
      map.addData(${MIB}, 0, 0);
      const file = { ...${JSON.stringify(image)}, device: false, fileSize: ${MIB} };
      const sources = [{ kind: 'file', path: file.path, size: ${MIB} }];
      const disk = { extents: map.finish(), sources, virtualSize: ${MIB}, view: undefined, layers: [file] };
      await dumpImage({
        target: 'vda',
        disk,
        format: '${format}',
        compressor: ${compressed} ? findCompressor('gzip') : undefined,
        file: '${root}/image.partial',
        scratch: '${root}/scratch.partial',
        owner: ${JSON.stringify(OWNER)},
        sessionDirectory: '${root}',
        reporter,
      });`;
    expect(await durableCalls(root, code)).toContain('fsync(<./image.partial>)');
  });
});
