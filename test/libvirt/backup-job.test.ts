import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { backupXml, checkpointXml, parseBackup } from '../../src/libvirt/backup-job.js';

const ODD = `/images, "odd" & <more>/it's`;

describe('the XML of a backup job', () => {
  it('names every disk, and is read back', () => {
    const disks = [
      { target: 'vda', scratch: `${ODD}/vda` },
      { target: 'vdb', scratch: `${ODD}/vdb`, since: 'cm-"1"' },
    ];
    const xml = backupXml({ socket: `${ODD}/nbd`, targets: ['fda', 'vda', 'vdb'], disks });
    expect(parseBackup(xml)).toEqual({ socket: `${ODD}/nbd`, scratches: [`${ODD}/vda`, `${ODD}/vdb`] });
    expect(xml).toContain(`<disk name='fda' backup='no'/>`);
    expect(xml).toMatch(/name='vda'[^>]*backupmode='full'/);
    expect(xml).toMatch(/name='vdb'[^>]*backupmode='incremental' incremental='cm-&#34;1&#34;'/);
  });

  it('of a checkpoint names every disk, too', () => {
    expect(checkpointXml('cm-1', ['vda', 'vdb'], ['vdb'])).toBe(
      `<domaincheckpoint><name>cm-1</name><disks><disk name='vda' checkpoint='no'/><disk name='vdb' checkpoint='bitmap'/></disks></domaincheckpoint>\n`,
    );
  });

  it('of others may lack anything: a push job has neither socket nor scratch files', () => {
    const push = `<domainbackup mode='push'><disks><disk name='vda' backup='yes' type='file'><target file='/x'/></disk></disks></domainbackup>`;
    expect(parseBackup(push)).toEqual({ socket: undefined, scratches: [] });
    expect(parseBackup(`<domainbackup/>`)).toEqual({ socket: undefined, scratches: [] });
  });

  it('is nothing else: other text throws', () => {
    fc.assert(
      fc.property(fc.string(), (text) => {
        expect(() => parseBackup(text)).toThrow();
      }),
    );
    expect(() => parseBackup('<domain/>')).toThrow();
  });
});
