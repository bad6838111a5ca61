# SPDX-License-Identifier: Apache-2.0
"""What a protected VM's domain XML may have, outside `<devices>`: one line an element. See judge.py for how it is read.

An element that has no line is refused, by name. The fates:

    rebuilt    harmless: the backup builds the same, or it is for this host alone
    mirrored   its content is on the backup, epoch by epoch
    gated      what it says is held until the backup has the epoch
    display    shows what the guest shows to whoever looks, now; nothing of it is held
    refused    by its name, or with words of its own (rules.py)

Then the attributes, each with the values that are let through (`a|b`) or any value (no `=`); `*` stands for any
attribute, `**` for any attribute and anything inside. A value that the line does not name is refused. `!`: all
that libvirt knows to stand inside, and has no line here, was looked at and is refused.
"""

from __future__ import annotations

DOMAIN = """
.                               rebuilt  id type=kvm|qemu
name                            rebuilt
uuid                            rebuilt
genid                           rebuilt
title                           rebuilt
description                     rebuilt
metadata                        rebuilt  **
memory                          rebuilt  *
currentMemory                   rebuilt  *
maxMemory                       rebuilt  *
memtune                         rebuilt  **
numatune                        rebuilt  **
vcpu                            rebuilt  *
vcpus                           rebuilt  **
iothreads                       rebuilt  *
iothreadids                     rebuilt  **
defaultiothread                 rebuilt  *
cputune                         rebuilt  **
blkiotune                       rebuilt  **
throttlegroups                  rebuilt  **
perf                            rebuilt  **
resource                        rebuilt  **
seclabel                        rebuilt  **
sysinfo                         rebuilt  **
cpu                             rebuilt  **
clock                           rebuilt  **
pm                              rebuilt  **
on_poweroff                     rebuilt
on_reboot                       rebuilt
on_crash                        rebuilt
on_lockfailure                  rebuilt

memoryBacking                   rebuilt
memoryBacking/hugepages         rebuilt
memoryBacking/hugepages/page    rebuilt  size unit nodeset
memoryBacking/nosharepages      rebuilt
memoryBacking/locked            rebuilt
memoryBacking/source            rebuilt  type=anonymous|memfd|file
memoryBacking/access            rebuilt  mode=shared|private
memoryBacking/allocation        rebuilt  mode=immediate|ondemand threads
memoryBacking/discard           rebuilt
launchSecurity                  refused

os                              rebuilt  firmware
os/type                         rebuilt  arch machine
os/loader                       rebuilt  readonly type secure stateless format
os/nvram                        mirrored template templateFormat type=file format
os/nvram/source                 mirrored file index !
os/nvram/source/seclabel        rebuilt  **
os/firmware                     rebuilt  **
os/varstore                     refused
os/boot                         rebuilt  *
os/bootmenu                     rebuilt  *
os/bios                         rebuilt  *
os/smbios                       rebuilt  *
os/kernel                       rebuilt
os/initrd                       rebuilt
os/shim                         rebuilt
os/cmdline                      rebuilt
os/dtb                          rebuilt
os/acpi                         rebuilt
os/acpi/table                   rebuilt  *

features                        rebuilt
features/acpi                   rebuilt
features/apic                   rebuilt  *
features/pae                    rebuilt
features/hap                    rebuilt  *
features/pmu                    rebuilt  *
features/vmport                 rebuilt  *
features/vmcoreinfo             rebuilt  *
features/ps2                    rebuilt  *
features/msrs                   rebuilt  *
features/ioapic                 rebuilt  *
features/pvspinlock             rebuilt  *
features/async-teardown         rebuilt  *
features/viridian               rebuilt
features/hyperv                 rebuilt  **
features/kvm                    rebuilt  **
features/smm                    rebuilt  **
features/tcg                    rebuilt  **

qemu:commandline                rebuilt  **
qemu:override                   rebuilt  **
qemu:deprecation                rebuilt  behavior=none
qemu:capabilities               refused

bootloader                      refused
bootloader_args                 refused
idmap                           refused
keywrap                         refused
namespace                       refused
datacenterpath                  refused
os/init                         refused
os/initarg                      refused
os/initenv                      refused
os/initdir                      refused
os/inituser                     refused
os/initgroup                    refused
os/root                         refused
features/aia                    refused
features/ccf-assist             refused
features/cfpc                   refused
features/gic                    refused
features/hpt                    refused
features/htm                    refused
features/ibs                    refused
features/nested-hv              refused
features/ras                    refused
features/sbbc                   refused
features/xen                    refused
features/capabilities           refused
features/privnet                refused
"""
