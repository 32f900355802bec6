import type { ChunkHasher } from '../chunks/chunk-hash.js';
import type { Geometry } from '../chunks/geometry.js';
import { StoredIndex } from '../content-index/index-file.js';
import { readTracking, type TrackingRecord } from '../tracking/record.js';
import type { Comparing, Observation, TrackedDisk, Tracker, TrackerKind } from '../tracking/tracker.js';
import { trackerOf, trackersFor } from '../tracking/trackers.js';
import { indexFile } from './daemon-config.js';
import { type DiskChanges, type DiskTracking, indexObstacle } from './disk-tracking.js';

export interface TrackingSettings {
  readonly track: 'auto' | 'none' | TrackerKind;
  /** Share of the chunks that did not change which is read nevertheless, 0 to 1. */
  readonly audit: number;
  /** Read everything in this session. */
  readonly fullScan: boolean;
  /** Read everything at least this often. */
  readonly fullScanEveryMs: number;
  /** Leave the VM on its overlay between sessions: it records what changes. */
  readonly keepOverlay: boolean;
  /** Leave other snapshots until the next session, which compares them with its own. */
  readonly keepSnapshot: boolean;
}

export interface TrackRequest extends Comparing {
  readonly disk: TrackedDisk;
  readonly cut: Geometry;
  readonly indexDirectory: string;
  readonly session: string;
  readonly settings: TrackingSettings;
  readonly hasher: ChunkHasher;
}

interface Observed {
  readonly tracker: Tracker;
  readonly observation: Observation;
}

/** Finds out what changed on a frozen disk since the session that its index describes. Reads none of it. */
export async function trackDisk(request: TrackRequest): Promise<DiskTracking> {
  const { disk, indexDirectory, session, settings, reporter } = request;
  const { track, audit } = settings;
  const wanted = await wantedTrackers(disk, track);
  const all: Observed[] = [];
  for (const tracker of wanted) {
    const observation = await tracker.observe(disk);
    all.push({ tracker, observation });
    // Who names one for a disk that it never is for would wait for its help in vain. One that goes by the image alone has its days.
    if (observation.kind === 'none' && tracker.kind === track && track !== 'still')
      reporter.warn(`disk ${disk.target}: --track=${track} has no effect: ${observation.reason}`);
    else if (observation.kind === 'none')
      reporter.debug(`disk ${disk.target}: tracker ${tracker.kind} knows nothing: ${observation.reason}`);
  }
  const record = readTracking(indexDirectory, disk.target);
  const changes = await changesOf(request, record, all);
  reporter.debug(
    changes.kind === 'known'
      ? `disk ${disk.target}: tracker ${changes.tracker} knows what changed: ${bytesIn(changes.ranges)} bytes`
      : `disk ${disk.target}: all of it is read: ${changes.reason}`,
  );
  return {
    session,
    begun: Date.now(),
    changes,
    observed: all.flatMap(({ tracker: { kind }, observation }) =>
      observation.kind === 'facts' && observation.lasting
        ? [{ tracker: kind, facts: observation.facts, madeBy: observation.madeBy }]
        : [],
    ),
    distrusted: typeof record === 'object' ? record.distrusted : [],
    audit,
  };
}

async function wantedTrackers(disk: TrackedDisk, track: TrackingSettings['track']): Promise<Tracker[]> {
  const all = await trackersFor(disk);
  if (track === 'auto') return all;
  // What is asked for by name tells why it knows nothing.
  return track === 'none' ? [] : [await trackerOf(track)];
}

export function bytesIn(ranges: readonly { readonly start: number; readonly end: number }[]): number {
  return ranges.reduce((sum, { start, end }) => sum + end - start, 0);
}

function unknown(reason: string): DiskChanges {
  return { kind: 'unknown', reason };
}

async function changesOf(
  request: TrackRequest,
  record: TrackingRecord | string | undefined,
  observed: readonly Observed[],
): Promise<DiskChanges> {
  const { settings } = request;
  if (settings.track === 'none') return unknown('--track=none');
  if (settings.fullScan) return unknown('--full-scan');
  if (typeof record !== 'object')
    return unknown(record ?? 'there is no record of a session that read all of it');
  const obstacle = recordObstacle(request, record);
  if (obstacle !== undefined) return unknown(obstacle);
  const reasons: string[] = [];
  let amount: Extract<DiskChanges, { kind: 'unknown' }>['amount'];
  for (const { tracker, observation } of observed) {
    const changes = await ask(tracker, observation, record, request);
    if (changes.kind === 'known') return changes;
    amount ??= changes.amount;
    reasons.push(`${tracker.kind}: ${changes.reason}`);
  }
  return { kind: 'unknown', reason: reasons.join('; '), amount };
}

/** Why no tracker can go on from the record, whatever it knows. */
function recordObstacle(request: TrackRequest, record: TrackingRecord): string | undefined {
  const { disk, cut, indexDirectory, settings, hasher } = request;
  const age = Date.now() - record.fullScan;
  if (age < 0) return 'the clock was set back';
  if (age >= settings.fullScanEveryMs)
    return `it was last read as a whole at ${new Date(record.fullScan).toISOString()} (--full-scan-every)`;
  const found = StoredIndex.open(indexFile(indexDirectory, disk.target), hasher);
  try {
    return indexObstacle(found, cut, record.index, hasher);
  } finally {
    if (found instanceof StoredIndex) found.close();
  }
}

async function ask(
  tracker: Tracker,
  observation: Observation,
  record: TrackingRecord,
  comparing: Comparing,
): Promise<DiskChanges> {
  const { index, falseZeros, fullScan, sums } = record;
  if (record.distrusted.some((distrust) => distrust.tracker === tracker.kind))
    return unknown('it was wrong in an earlier session');
  if (observation.kind === 'none') return unknown(observation.reason);
  const base = record.bases.find((candidate) => candidate.tracker === tracker.kind);
  if (base === undefined) return unknown('it knows nothing of the last session');
  const changes = await tracker.changesSince(base.facts, observation.facts, comparing);
  if (changes.kind === 'unknown') {
    const { reason, amount } = changes;
    return { kind: 'unknown', reason, amount: amount && { ...amount, tracker: tracker.kind } };
  }
  return { kind: 'known', tracker: tracker.kind, ranges: changes.ranges, index, falseZeros, fullScan, sums };
}

/** Whether what a tracker observed at the beginning of a session is so still. */
export async function stillHolds({ tracker, facts }: DiskTracking['observed'][number]): Promise<boolean> {
  return (await trackerOf(tracker)).stillHolds(facts);
}
