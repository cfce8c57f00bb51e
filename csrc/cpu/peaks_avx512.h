// A loop of one instruction (a macro of the destination register) over 24 independent registers, in assembly: what is
// measured is that instruction and no compiler's choice. `iterations` is counted down.
#pragma once

#define BIGMODEL_EACH_OF_24(I)                                                                                   \
  I("0")                                                                                                         \
  I("1") I("2") I("3") I("4") I("5") I("6") I("7") I("8") I("9") I("10") I("11") I("12") I("13") I("14") I("15") \
      I("16") I("17") I("18") I("19") I("20") I("21") I("22") I("23")
#define BIGMODEL_CLEAR(r) "vpxorq %%zmm" r ", %%zmm" r ", %%zmm" r "\n\t"
#define BIGMODEL_PEAK_LOOP(instruction)                                                                             \
  __asm__ volatile(BIGMODEL_EACH_OF_24(BIGMODEL_CLEAR) BIGMODEL_CLEAR("30") BIGMODEL_CLEAR(                         \
                       "31") ".p2align 6\n1:\n\t" BIGMODEL_EACH_OF_24(instruction) "dec %0\n\tjnz 1b\n\tvzeroupper" \
                   : "+r"(iterations)                                                                               \
                   :                                                                                                \
                   : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", \
                     "xmm11", "xmm12", "xmm13", "xmm14", "xmm15", "xmm16", "xmm17", "xmm18", "xmm19", "xmm20",      \
                     "xmm21", "xmm22", "xmm23", "xmm29", "xmm30", "xmm31")
