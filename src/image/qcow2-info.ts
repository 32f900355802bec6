import * as v from 'valibot';
import { run } from '../host/exec.js';

/** What we use of `qemu-img info --output=json` for qcow2 (ImageInfoSpecificQCow2 in QEMU's qapi/block-core.json). */
const schema = v.object({
  'cluster-size': v.number(),
  snapshots: v.optional(v.array(v.object({ id: v.string() })), []),
  'format-specific': v.object({
    data: v.object({
      compat: v.string(),
      'data-file': v.optional(v.string()),
      bitmaps: v.optional(v.array(v.object({ name: v.string(), flags: v.array(v.string()) })), []),
    }),
  }),
});

/** What a qcow2 header says beside the disk itself. Names are hostile: whoever wrote the image chose them. */
export interface Qcow2Info {
  /** Version 3, which alone can hold bitmaps. */
  readonly version3: boolean;
  /** In bytes. */
  readonly clusterSize: number;
  /** Its data are in another file. */
  readonly dataElsewhere: boolean;
  /** How many states of the disk are kept inside, to which it can be set back. */
  readonly snapshots: number;
  /** Dirty bitmaps as they were last saved; `recording`: they go on when the image is next opened. */
  readonly bitmaps: readonly { readonly name: string; readonly recording: boolean }[];
}

/** Reads the header of a qcow2 file or block device, which a VM may have open. Opens no backing file. */
export async function qcow2Info(file: string, signal?: AbortSignal | undefined): Promise<Qcow2Info> {
  const args = ['info', '-U', '-f', 'qcow2', '--output=json', file];
  const { stdout } = await run('qemu-img', args, { signal });
  const parsed = v.parse(schema, JSON.parse(stdout));
  const { compat, bitmaps, 'data-file': dataFile } = parsed['format-specific'].data;
  return {
    version3: compat !== '0.10',
    clusterSize: parsed['cluster-size'],
    dataElsewhere: dataFile !== undefined,
    snapshots: parsed.snapshots.length,
    bitmaps: bitmaps.map(({ name, flags }) => ({ name, recording: flags.includes('auto') })),
  };
}
