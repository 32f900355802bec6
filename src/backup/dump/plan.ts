import * as fs from 'node:fs';
import * as path from 'node:path';
import { readSums } from '../dump-files.js';
import type { FrozenSource } from '../source.js';
import type { Compressor } from './compressor.js';
import type { DumpFormat } from './image.js';

export interface PlanRequest {
  readonly name: string;
  readonly source: FrozenSource;
  readonly format: DumpFormat;
  readonly compressor: Compressor | undefined;
  /** The snapshot's time goes into the names. */
  readonly dated: boolean;
}

/** Names of the files of one dump. */
export interface DumpPlan {
  readonly disks: readonly { readonly target: string; readonly file: string; readonly scratch: string }[];
  readonly xml: string | undefined;
  readonly nvram: string | undefined;
  /** The guest's memory. */
  readonly state: string | undefined;
  readonly sums: string;
}

/** `20261120T231122Z` */
function stamp(time: Date): string {
  return time.toISOString().replace(/[-:]|\.[0-9]+/g, '');
}

export function planDump({ name, source, format, compressor, dated }: PlanRequest): DumpPlan {
  const date = dated ? `-${stamp(source.time)}` : '';
  return {
    disks: source.disks.map(({ target }) => {
      const image = `${name}_${target}${date}.${format}`;
      return { target, file: image + (compressor?.extension ?? ''), scratch: image };
    }),
    xml: source.xml === undefined ? undefined : `${name}${date}.xml`,
    nvram: source.nvram === undefined ? undefined : `${name}${date}.nvram.fd`,
    state: source.memory === undefined ? undefined : `${name}${date}.state`,
    sums: `${name}${date}.sha256`,
  };
}

/** What becomes of the files that the sums of the dump before name. */
export interface Succession {
  /** Lines of files that stay: of disks that are not in the new dump. */
  readonly kept: readonly string[];
  /** Images of the same disks under other names, and what else there was: memory of another moment would do harm. */
  readonly obsolete: readonly string[];
}

/** A dump replaces what it has itself and nothing else: another one may be of other disks. */
export function succeed(
  directory: string,
  name: string,
  plan: DumpPlan,
  files: readonly string[],
): Succession {
  const kept: string[] = [];
  const obsolete: string[] = [];
  for (const [file, sum] of readSums(path.join(directory, plan.sums))) {
    if (files.includes(file) || !fs.existsSync(path.join(directory, file))) continue;
    const ofImage = file.startsWith(`${name}_`);
    const replaced = !ofImage || plan.disks.some(({ target }) => file.startsWith(`${name}_${target}.`));
    if (replaced) obsolete.push(file);
    else kept.push(`${sum}  ${file}`);
  }
  return { kept, obsolete };
}
