/** What the manual says beyond the commands' own help: titles and texts, written as their help is. */
export const BEFORE: Readonly<Record<string, string>> = {
  DESCRIPTION: `
chunkmount freezes the disks of a libvirt/KVM virtual machine and shows each of them, through FUSE, as a directory of files of 256 KiB
that take up no space. A chunk that did not change since the last backup has the same name, size, times and inode number
as then, so every backup program sees that it did not change, and neither reads nor sends it. What such a program copies is a plain
directory of files with their checksums, which can be checked and restored with chunkmount and without it.

stdout has the result alone; all else goes to stderr.`,
};

export const AFTER: Readonly<Record<string, string>> = {
  'EXIT STATUS': `
  0      done
  1      failed; also: all is cleaned up, but the tree was not whole, so the backup is not good
  2      wrong usage
  3      locked, mounted already, or too many backups
  4      a tree is damaged: chunks are missing or corrupt; also: a copy of chain is, or verify --against found a difference
  5      some VMs are done, some failed
  128+n  ended by signal n, after cleaning up

run exits with the code of its command. A first signal stops and undoes; a second leaves the undoing to chunkmount cleanup.`,
  ENVIRONMENT: `
  CHUNKMOUNT_BACKUPDIR  where trees are mounted, if not said by --backupdir
  CHUNKMOUNT_STATEDIR   sessions and chunk indexes, if not said by --statedir
  XDG_STATE_HOME        where both are for users other than root
  NOTIFY_SOCKET         mount --foreground tells systemd there that the tree is mounted`,
  FILES: `
  /var/lib/libvirt/backup        trees, while they are mounted; for users other than root ~/.local/state/chunkmount/mounts
  /var/lib/chunkmount/index      what makes the next backup small; when it is lost, all chunks count as changed once
  /var/lib/chunkmount/sessions   what is to be undone, until it is; for users other than root ~/.local/state/chunkmount/sessions
  /var/lib/chunkmount/boots      the same of VMs that boot began

A tree has manifest.json, which describes it, NAME.xml, the VM's definition, and for each disk a file TARGET.xxh64 with one
line a chunk, as xxhsum -c reads it, and a directory TARGET with the chunks.`,
  'SEE ALSO': `
virsh(1), qemu-img(1), rsync(1), restic(1), borg(1), xxhsum(1)`,
};
