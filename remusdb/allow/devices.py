# SPDX-License-Identifier: Apache-2.0
"""What a protected VM's domain XML may have under `<devices>`: one line an element, read as table.py says.

`*` as a path's second part stands for any device: those children say where a device sits, and nothing leaves by them.
What may stand in a character device's `<source>`, a disk or an interface depends on its type: characters.py,
disks.py and interfaces.py look at that.
"""

from __future__ import annotations

DEVICES = """
devices                         rebuilt
devices/emulator                rebuilt
devices/*/alias                 rebuilt  *
devices/*/address               rebuilt  **
devices/*/acpi                  rebuilt  *
devices/*/boot                  rebuilt  *
devices/*/rom                   rebuilt  *
devices/*/source/seclabel       rebuilt  **

devices/disk                    mirrored type=file|block|volume device=disk|cdrom|floppy model snapshot rawio=no \
sgio=filtered
devices/disk/driver             rebuilt  name=qemu type cache io error_policy discard detect_zeroes discard_no_unref \
copy_on_read rerror_policy event_idx ioeventfd iothread queues queue_size statistics iommu ats packed page_per_vq
devices/disk/driver/iothreads   rebuilt  **
devices/disk/driver/statistics  rebuilt  **
devices/disk/driver/metadata_cache rebuilt **
devices/disk/source             mirrored file dev pool volume index startupPolicy mode=host !
devices/disk/source/slices      mirrored
devices/disk/source/slices/slice mirrored type=storage offset size
devices/disk/source/privateData rebuilt  **
devices/disk/privateData        rebuilt  **
devices/disk/backingStore       mirrored **
devices/disk/mirror             rebuilt  **
devices/disk/target             rebuilt  dev bus=virtio|scsi|sata|ide|fdc|usb|sd tray removable rotation_rate
devices/disk/readonly           rebuilt
devices/disk/geometry           rebuilt  *
devices/disk/blockio            rebuilt  *
devices/disk/serial             rebuilt
devices/disk/wwn                rebuilt
devices/disk/vendor             rebuilt
devices/disk/product            rebuilt
devices/disk/iotune             rebuilt  **
devices/disk/throttlefilters    rebuilt  **

devices/interface               gated    type=bridge|network trustGuestRxFilters
devices/interface/mac           rebuilt  *
devices/interface/source        gated    bridge network portgroup portid macTableManager !
devices/interface/target        rebuilt  dev managed
devices/interface/model         rebuilt  type=virtio|virtio-transitional|virtio-non-transitional|virtio-net|e1000|\
e1000e|e1000-82544gc|e1000-82545em|igb|rtl8139|vmxnet3|ne2k_pci|ne2k_isa|pcnet|tulip|i82550|i82551|i82557b|i82559er
devices/interface/driver        rebuilt  name=qemu|vhost txmode ioeventfd event_idx queues rx_queue_size tx_queue_size \
rss rss_hash_report iommu ats packed page_per_vq
devices/interface/driver/host   rebuilt  *
devices/interface/driver/guest  rebuilt  *
devices/interface/backend       rebuilt  type=default tap=/dev/net/tun vhost=/dev/vhost-net
devices/interface/link          rebuilt  *
devices/interface/mtu           rebuilt  *
devices/interface/coalesce      rebuilt  **
devices/interface/tune          rebuilt  **
devices/interface/vlan          rebuilt  **
devices/interface/port          rebuilt  *
devices/interface/guest         rebuilt  *
devices/interface/ip            rebuilt  *
devices/interface/route         rebuilt  *

devices/serial                  rebuilt  type tty
devices/serial/target           rebuilt  type=isa-serial|pci-serial|isa-debug|serial port
devices/serial/target/model     rebuilt  *
devices/serial/source           rebuilt  path append
devices/serial/log              rebuilt  file append
devices/parallel                rebuilt  type tty
devices/parallel/target         rebuilt  **
devices/parallel/source         rebuilt  path append
devices/parallel/log            rebuilt  file append
devices/console                 rebuilt  type tty
devices/console/target          rebuilt  type=serial|virtio|isa-serial|pci-serial|isa-debug port
devices/console/target/model    rebuilt  *
devices/console/source          rebuilt  path append
devices/console/log             rebuilt  file append
devices/channel                 rebuilt  type
devices/channel/target          rebuilt  type=virtio name state
devices/channel/source          rebuilt  path append mode
devices/channel/log             rebuilt  file append
devices/redirdev                display  bus=usb type
devices/redirdev/source         rebuilt
devices/redirdev/log            rebuilt  file append
devices/redirfilter             rebuilt  **
devices/smartcard               display  mode=passthrough type
devices/smartcard/source        rebuilt
devices/smartcard/log           rebuilt  file append

devices/graphics                display  type=vnc|spice port autoport tlsPort websocket listen socket keymap passwd \
passwdValidTo connected sharePolicy powerControl defaultMode
devices/graphics/listen         display  type=address|network|socket|none address network socket
devices/graphics/channel        rebuilt  *
devices/graphics/clipboard      rebuilt  *
devices/graphics/filetransfer   rebuilt  *
devices/graphics/image          rebuilt  *
devices/graphics/jpeg           rebuilt  *
devices/graphics/zlib           rebuilt  *
devices/graphics/mouse          rebuilt  *
devices/graphics/playback       rebuilt  *
devices/graphics/streaming      rebuilt  *
devices/graphics/audio          rebuilt  *
devices/graphics/gl             rebuilt  enable=no
devices/video                   rebuilt
devices/video/driver            rebuilt  name=qemu vgaconf iommu ats packed page_per_vq
devices/video/model             rebuilt  type=vga|cirrus|bochs|qxl|virtio|vmvga|ramfb|none heads primary ram vram \
vram64 vgamem blob=off edid
devices/video/model/acceleration rebuilt accel2d accel3d=no
devices/video/model/resolution  rebuilt  *
devices/sound                   rebuilt  model=ich6|ich7|ich9|ac97|es1370|sb16|pcspk
devices/sound/codec             rebuilt  *
devices/sound/audio             rebuilt  *
devices/audio                   display  id type=none|spice timerPeriod
devices/audio/input             rebuilt  **
devices/audio/output            rebuilt  **

devices/input                   rebuilt  type=mouse|tablet|keyboard bus=ps2|usb|virtio model
devices/input/driver            rebuilt  iommu ats packed page_per_vq
devices/hub                     rebuilt  type=usb
devices/controller              rebuilt  type=pci|usb|scsi|sata|ide|fdc|virtio-serial|ccid|isa index model ports vectors
devices/controller/driver       rebuilt  queues cmd_per_lun max_sectors ioeventfd iothread iommu ats packed page_per_vq
devices/controller/driver/iothreads rebuilt **
devices/controller/master       rebuilt  *
devices/controller/model        rebuilt  *
devices/controller/target       rebuilt  **
devices/controller/pcihole64    rebuilt  *
devices/memballoon              rebuilt  model=virtio|virtio-transitional|virtio-non-transitional|none autodeflate \
freePageReporting
devices/memballoon/stats        rebuilt  *
devices/memballoon/driver       rebuilt  iommu ats packed page_per_vq
devices/memory                  rebuilt  model=dimm|virtio-mem access discard
devices/memory/source           rebuilt  !
devices/memory/source/pagesize  rebuilt  *
devices/memory/source/nodemask  rebuilt
devices/memory/target           rebuilt  **
devices/memory/uuid             rebuilt
devices/rng                     rebuilt  model
devices/rng/backend             rebuilt  model=random|builtin !
devices/rng/rate                rebuilt  *
devices/rng/driver              rebuilt  iommu ats packed page_per_vq
devices/watchdog                rebuilt  model=i6300esb|ib700|itco action=reset|shutdown|poweroff|pause|none|inject-nmi
devices/panic                   rebuilt  model=isa|pvpanic|hyperv
devices/iommu                   rebuilt  model=intel|virtio
devices/iommu/driver            rebuilt  *

devices/hostdev                 refused
devices/filesystem              refused
devices/tpm                     refused
devices/vsock                   refused
devices/shmem                   refused
devices/pstore                  refused
devices/crypto                  refused
devices/lease                   refused
devices/nvram                   refused
devices/*/protocol              refused
devices/*/source/clipboard      refused
devices/*/source/mouse          refused
devices/*/source/reconnect      refused
devices/disk/shareable          refused
devices/disk/transient          refused
devices/disk/encryption         refused
devices/disk/auth               refused
devices/disk/backenddomain      refused
devices/interface/backenddomain refused
devices/interface/bandwidth     refused
devices/interface/downscript    refused
devices/interface/filterref     refused
devices/interface/portForward   refused
devices/interface/script        refused
devices/interface/teaming       refused
devices/interface/virtualport   refused
devices/input/source            refused
devices/smartcard/certificate   refused
devices/smartcard/database      refused
devices/smartcard/target        refused
devices/sound/driver            refused
"""
