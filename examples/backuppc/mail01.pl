# BackupPC 4: configuration of one VM, /etc/backuppc/mail01.pl (or pc/mail01.pl in BackupPC's configuration directory).
# The VM is a host of its own in BackupPC, called as libvirt calls it. The hypervisor is where BackupPC goes.

$Conf{ClientNameAlias} = 'hypervisor1';

# The user backuppc logs in there as root, with ssh and a key.
$Conf{XferMethod}     = 'rsync';
$Conf{RsyncShareName} = ['/var/lib/libvirt/backup/mail01'];

# Before: freeze and mount. What a backup that was killed left behind is cleaned up first.
$Conf{DumpPreUserCmd} = '$sshPath -q -x -l root $host chunkmount cleanup --vm=$client; chunkmount --vm=$client';
# After, also when the backup failed: unmount, and give the VM its disks back.
$Conf{DumpPostUserCmd} = '$sshPath -q -x -l root $host chunkmount cleanup --vm=$client';
# A tree that could not be mounted, or was not whole, makes the backup fail; the ones before stay.
$Conf{UserCmdCheckStatus} = 1;

# A full backup reads all chunks and compares checksums. With this line it looks at sizes and times, as incremental ones do,
# and is as quick: a chunk that changed always has a later time.
# $Conf{RsyncFullArgsExtra} = [];
