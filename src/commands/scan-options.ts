import type { Command } from 'commander';
import type { BackupSettings } from '../backup/settings.js';
import type { TrackingSettings } from '../backup/track-disk.js';
import { usage } from '../errors.js';
import type { IoPriority } from '../host/politeness.js';
import { TRACKER_KINDS } from '../tracking/tracker.js';
import { choiceOption } from './choice-option.js';
import { parseChoice, parseSize } from './parse.js';

/** Option values as commander has them. */
export interface TrackingOptions {
  track?: string;
  audit?: string;
  fullScan?: boolean;
  fullScanEvery?: string;
  keepOverlay?: boolean;
  keepSnapshot?: boolean;
}

export interface ScanOptions extends TrackingOptions {
  nice?: string;
  ionice?: string;
  bwlimit?: string;
}

const TRACK_CHOICES = ['auto', 'none', ...TRACKER_KINDS] as const;

const DEFAULT_AUDIT = 0.005;
const DEFAULT_FULL_SCAN_EVERY = '30d';

const HOUR_MS = 3_600_000;
const UNIT_MS: Readonly<Record<string, number>> = { h: HOUR_MS, d: 24 * HOUR_MS, w: 7 * 24 * HOUR_MS };

export const SCAN_HELP = `
What did not change since the last session need not be read again, where that can be known: --track=still for an image
whose file was not written since; overlay for a VM that the last session left on its overlay (--keep-overlay; cleanup
--kept gives it its image back); bitmap for qcow2 images, with --snapshot=pull each time; thin for a thin LVM volume
and reflink for files on XFS and Btrfs (--snapshot=reflink), if the last session left its snapshot (--keep-snapshot). A
random sample of such chunks is read nevertheless, before any of them is shown (--audit; at least 16 chunks); if one did
change, the whole disk is read, and list says so.`;

export function addTrackingOptions(command: Command): Command {
  return command
    .addOption(choiceOption('--track <how>', 'how to know what changed', [...TRACK_CHOICES]).default('auto'))
    .option('--audit <percent>', 'share of the unchanged chunks that is read nevertheless (0.5%)')
    .option('--keep-overlay', 'leave the VM on its overlay: it records what changes until the next backup')
    .option('--full-scan', 'read everything this time')
    .option(
      '--full-scan-every <time>',
      `read everything if that was last done so long ago: 12h, 30d, 8w (${DEFAULT_FULL_SCAN_EVERY})`,
    )
    .option('--keep-snapshot', 'leave the snapshot until the next session, which compares it with its own');
}

/** The options of what serves a tree in the background: of mount and run. */
export function addScanOptions(command: Command): Command {
  return addTrackingOptions(command)
    .option('--nice <n>', 'the daemon gives way to other programs: 0 to 19, as nice(1)')
    .option('--ionice <class[:level]>', 'the same for the disks: idle, best-effort:7, realtime, as ionice(1)')
    .option('--bwlimit <rate>', 'what is read ahead of the backup program, at most, a second: 50M');
}

function parseAudit(text: string): number {
  const match = /^([0-9]{1,3}(?:\.[0-9]{1,6})?)%?$/.exec(text);
  const percent = match === null ? Number.NaN : Number(match[1]);
  if (percent >= 0 && percent <= 100) return percent / 100;
  throw usage(`--audit=${text} is no share`, { hint: 'give a percentage, for example --audit=0.5%' });
}

function parseTime(text: string): number {
  const match = /^([0-9]{1,5})([hdw])$/.exec(text);
  if (match !== null) return Number(match[1]) * UNIT_MS[match[2]!]!;
  throw usage(`--full-scan-every=${text} is no time`, {
    hint: 'give hours, days or weeks: 12h, 30d, 8w',
  });
}

function parseNice(text: string): number {
  const nice = /^[0-9]{1,2}$/.test(text) ? Number(text) : Number.NaN;
  if (nice <= 19) return nice;
  throw usage(`--nice=${text} is not possible`, { hint: 'give 0 to 19; 19 gives way to everybody' });
}

function parseIonice(text: string): IoPriority {
  const match = /^(idle|best-effort|realtime)(?::([0-7]))?$/.exec(text);
  if (match === null || (match[1] === 'idle' && match[2] !== undefined)) {
    throw usage(`--ionice=${text} is not possible`, {
      hint: 'give idle, best-effort or realtime; the last two may have a level from 0 to 7: best-effort:7',
    });
  }
  return {
    class: match[1] as IoPriority['class'],
    ...(match[2] === undefined ? {} : { level: Number(match[2]) }),
  };
}

/** With less, hardly anything ever gets done. */
const LEAST_BANDWIDTH = 64 * 1024;

function parseBandwidth(text: string): number {
  const bytes = parseSize(text);
  if (bytes !== undefined && bytes >= LEAST_BANDWIDTH) return bytes;
  throw usage(`--bwlimit=${text} is not possible`, {
    hint: 'give bytes a second from 64K on, for example --bwlimit=50M',
  });
}

/** Checks the options and fills in defaults. Throws usage errors. */
export function trackingSettings(options: TrackingOptions): TrackingSettings {
  return {
    track: parseChoice(options.track ?? 'auto', '--track', TRACK_CHOICES),
    audit: options.audit === undefined ? DEFAULT_AUDIT : parseAudit(options.audit),
    fullScan: options.fullScan === true,
    fullScanEveryMs: parseTime(options.fullScanEvery ?? DEFAULT_FULL_SCAN_EVERY),
    keepOverlay: options.keepOverlay === true,
    keepSnapshot: options.keepSnapshot === true,
  };
}

export function scanSettings(
  options: ScanOptions,
): Pick<BackupSettings, 'tracking' | 'politeness' | 'bandwidth'> {
  const { nice, ionice, bwlimit } = options;
  return {
    tracking: trackingSettings(options),
    politeness: {
      ...(nice === undefined ? {} : { nice: parseNice(nice) }),
      ...(ionice === undefined ? {} : { ionice: parseIonice(ionice) }),
    },
    bandwidth: bwlimit === undefined ? undefined : parseBandwidth(bwlimit),
  };
}
