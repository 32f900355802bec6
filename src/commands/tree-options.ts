import type { Command } from 'commander';
import type { BackupSettings } from '../backup/settings.js';
import { LAYOUT_KINDS } from '../chunks/layout.js';
import { ZERO_CHUNKS } from '../chunks/manifest.js';
import { usage } from '../errors.js';
import { choiceOption } from './choice-option.js';
import { parseChoice } from './parse.js';

/** The options as commander has them. */
export interface TreeOptions {
  layout?: string;
  zeroChunks?: string;
}

/** What the tree looks like: for mount and run. */
export function addTreeOptions(command: Command): Command {
  return command
    .addOption(
      choiceOption(
        '--layout <kind>',
        "where chunks lie; chunkfs: as C chunkfs has them, to go on with virt-backup's backups",
        LAYOUT_KINDS,
      ).default('chunkmount'),
    )
    .addOption(
      choiceOption('--zero-chunks <how>', 'skip leaves chunks of zeros out of the tree', ZERO_CHUNKS).default(
        'keep',
      ),
    );
}

/** Checks the options and fills in defaults. Throws usage errors. */
export function treeSettings({
  layout = 'chunkmount',
  zeroChunks = 'keep',
}: TreeOptions): Pick<BackupSettings, 'layout' | 'zeroChunks'> {
  const settings = {
    layout: parseChoice(layout, '--layout', LAYOUT_KINDS),
    zeroChunks: parseChoice(zeroChunks, '--zero-chunks', ZERO_CHUNKS),
  };
  if (settings.layout === 'chunkfs' && settings.zeroChunks === 'skip') {
    throw usage('--layout=chunkfs and --zero-chunks=skip exclude each other', {
      hint: 'unchunkfs fails at chunks that are not there: leave one of them out',
    });
  }
  return settings;
}
