import * as path from 'node:path';
import { describe, expect, it } from 'vitest';
import { type BackupOptions, backupSettings } from '../../src/commands/backup-options.js';
import { scanSettings } from '../../src/commands/scan-options.js';

const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;

/** Each of them has an effect that only few tests could see, and some of those take a virtual machine with LVM. */
describe('an option has its setting', () => {
  const of = (options: Partial<BackupOptions>) =>
    backupSettings({ snapshot: 'auto', transport: 'auto', ...options });

  it.each<[Partial<BackupOptions>, object]>([
    [{}, { memory: false, shutdown: undefined, quiesce: 'no', pause: false, exclude: [], maxBackups: 0 }],
    [{}, { snapshotAutoextend: false, directIo: false, keepLock: false, commitTimeoutMs: undefined }],
    [{ snapAutoextend: true }, { snapshotAutoextend: true }],
    [{ directIo: true }, { directIo: true }],
    [{ keepLock: true }, { keepLock: true }],
    [{ state: true }, { memory: true }],
    [{ maxBackups: '3' }, { maxBackups: 3 }],
    [{ commitTimeout: '7' }, { commitTimeoutMs: 7_000 }],
    [{ shutdown: true }, { shutdown: { timeoutMs: 300_000 } }],
    [{ shutdown: true, shutdownTimeout: '7' }, { shutdown: { timeoutMs: 7_000 } }],
    [{ shutdownTimeout: '7' }, { shutdown: undefined }],
    [{ quiesce: true }, { quiesce: 'try' }],
    [{ quiesce: 'require' }, { quiesce: 'require' }],
    [{ snapshot: false }, { snapshot: 'none', pause: true }],
    [{ snapshot: 'none' }, { snapshot: 'none', pause: false }],
    [{ exclude: 'vda,vdb' }, { exclude: ['vda', 'vdb'] }],
    [{ overlayDir: 'here' }, { overlayDirectory: path.resolve('here') }],
    [{ connect: 'test:///default' }, { connect: 'test:///default' }],
  ])('%j', (options, settings) => {
    expect(of(options)).toMatchObject(settings);
  });
});

describe('an option of what is read has its setting', () => {
  it('also when it is not given, as the help says', () => {
    expect(scanSettings({})).toEqual({
      tracking: {
        ...{ track: 'auto', audit: 0.005, fullScan: false, fullScanEveryMs: 30 * DAY_MS },
        ...{ keepOverlay: false, keepSnapshot: false },
      },
      politeness: {},
      bandwidth: undefined,
    });
  });

  it.each([
    [{ track: 'still' }, { track: 'still' }],
    [{ audit: '0' }, { audit: 0 }],
    [{ audit: '12.5%' }, { audit: 0.125 }],
    [{ audit: '100%' }, { audit: 1 }],
    [{ fullScan: true }, { fullScan: true }],
    [{ fullScanEvery: '12h' }, { fullScanEveryMs: 12 * HOUR_MS }],
    [{ fullScanEvery: '3d' }, { fullScanEveryMs: 3 * DAY_MS }],
    [{ fullScanEvery: '8w' }, { fullScanEveryMs: 56 * DAY_MS }],
    [{ keepOverlay: true }, { keepOverlay: true }],
    [{ keepSnapshot: true }, { keepSnapshot: true }],
  ])('%j', (options, tracking) => {
    expect(scanSettings(options).tracking).toMatchObject(tracking);
  });

  it.each([
    [{ nice: '0' }, { politeness: { nice: 0 } }],
    [{ nice: '19' }, { politeness: { nice: 19 } }],
    [{ ionice: 'realtime' }, { politeness: { ionice: { class: 'realtime' } } }],
    [{ ionice: 'best-effort:0' }, { politeness: { ionice: { class: 'best-effort', level: 0 } } }],
    [{ bwlimit: '64K' }, { bandwidth: 64 * 1024 }],
  ])('%j', (options, settings) => {
    expect(scanSettings(options)).toMatchObject(settings);
  });

  it('or is refused: a rate below what gets anything done', () => {
    expect(() => scanSettings({ bwlimit: '65535' })).toThrow('--bwlimit=65535 is not possible');
  });
});
