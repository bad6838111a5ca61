// SPDX-License-Identifier: Apache-2.0
// A bare-metal guest that reads its SATA disk without end, at random places, into random pages: SLOTS requests of PIECES
// pages each are in flight at any time (AHCI, NCQ), so that each lands while others are under way. It runs under KVM
// where nesting cannot boot a stock kernel. It prints a line with the number of finished requests every 256 of them.
// -DDISK_PAGES=... is the size of the disk in pages; the pages that are read into lie from BASE, and are PAGES many.
typedef unsigned char u8;
typedef unsigned int u32;

enum { BASE = 0x400000, PAGES = 4096, PAGE = 4096, SECTORS = 8, SLOTS = 16, PIECES = 4 };
enum { ABAR = 0xfeb00000, PORT = ABAR + 0x100 };  // of q35's own controller, at 00:1f.2; the firmware gave it none
enum { CLB = 0x00, FB = 0x08, CMD = 0x18, SACT = 0x34, CI = 0x38 };

struct header { u32 what, moved, table, table_high, reserved[4]; };
struct piece { u32 address, address_high, reserved, bytes; };
struct table { u8 command[64], packet[16], reserved[48]; struct piece pieces[8]; };

static struct header headers[32] __attribute__((aligned(1024)));
static u8 received[256] __attribute__((aligned(256)));
static struct table tables[32] __attribute__((aligned(256)));
static u32 seed = 1;

static void out8(unsigned short port, u8 value) { asm volatile("outb %0, %1" ::"a"(value), "Nd"(port)); }
static void out32(unsigned short port, u32 value) { asm volatile("outl %0, %1" ::"a"(value), "Nd"(port)); }
static volatile u32 *at(u32 address) { return (volatile u32 *)address; }

static void configure(u32 offset, u32 value) {
    out32(0xcf8, 0x80000000 | 31 << 11 | 2 << 8 | offset);
    out32(0xcfc, value);
}

static u32 below(u32 bound) {
    seed = seed * 1664525 + 1013904223;
    return (seed >> 8) % bound;
}

static void print(u32 number) {
    for (int shift = 28; shift >= 0; shift -= 4) out8(0x3f8, "0123456789abcdef"[number >> shift & 15]);
    out8(0x3f8, '\n');
}

static void request(u32 slot) {
    u32 sector = below(DISK_PAGES - PIECES) * SECTORS;
    struct table *table = &tables[slot];
    const u8 command[] = {
        0x27, 0x80, 0x60, PIECES * SECTORS,            // to the device, a command, READ FPDMA QUEUED, sectors
        sector, sector >> 8, sector >> 16, 0x40,       // the sector number; 0x40: LBA
        sector >> 24, 0, 0, 0, slot << 3, 0, 0, 0,
    };
    for (u32 i = 0; i < sizeof command; i++) table->command[i] = command[i];
    for (u32 i = 0; i < PIECES; i++)
        table->pieces[i] = (struct piece){BASE + below(PAGES) * PAGE, 0, 0, PAGE - 1};
    headers[slot] = (struct header){PIECES << 16 | 5, 0, (u32)table, 0, {0}};
    asm volatile("" ::: "memory");
    *at(PORT + SACT) = 1u << slot;
    *at(PORT + CI) = 1u << slot;
}

void run(void) {
    configure(0x24, ABAR);
    configure(0x04, 6);  // memory space, bus master
    *at(ABAR + 4) = 1u << 31;
    *at(PORT + CLB) = (u32)headers;
    *at(PORT + FB) = (u32)received;
    *at(PORT + CMD) |= 1 << 4;
    *at(PORT + CMD) |= 1;
    for (u32 slot = 0; slot < SLOTS; slot++) request(slot);
    for (u32 done = 0;;) {
        u32 busy = *at(PORT + SACT);
        for (u32 slot = 0; slot < SLOTS; slot++)
            if (!(busy >> slot & 1)) {
                request(slot);
                if (++done % 256 == 0) print(done);
            }
        for (int i = 0; i < 20000; i++) asm volatile("pause");
    }
}

asm(".section .multiboot, \"a\"\n"
    ".long 0x1BADB002, 0x00010003, -(0x1BADB002 + 0x00010003), 0x100000, 0x100000, 0, 0, start\n"
    ".section .text.start, \"ax\"\n"
    ".globl start\n"
    "start: mov $0x90000, %esp\n"
    "call run\n");
