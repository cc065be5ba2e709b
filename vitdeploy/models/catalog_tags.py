"""Published weights of the catalog's models, one a line; catalog.py reads them.

Facts from timm 1.0.31's default configurations; top-1 and top-5 on ImageNet-1k from timm's results table (repository
snapshot of 2026-08-08), "-" where it has none. `pixels` names the mean and std, `heads` is the number of classes (0: no
classifier). Options: `size=N` where the input differs from the architecture's, `squash` and `bilinear` preprocessing,
`nohub` where timm's hub organisation holds no copy, `quickgelu` where the weights were trained with QuickGELU and the
model has GELU. An `untrained` line holds the preprocessing of an architecture that nobody published weights for. An
architecture's first tag is its default.
"""

TABLE = """
# name.tag                                               pixels    crop  heads licence         top-1  top-5 options
vit_tiny_patch16_224.augreg_in21k_ft_in1k                half       0.9   1000 apache-2.0     75.452 92.858
vit_tiny_patch16_224.augreg_in21k                        half       0.9  21843 apache-2.0          -      -
vit_tiny_patch16_384.augreg_in21k_ft_in1k                half       1.0   1000 apache-2.0     78.438 94.542
vit_small_patch32_224.augreg_in21k_ft_in1k               half       0.9   1000 apache-2.0     76.010 93.266
vit_small_patch32_224.augreg_in21k                       half       0.9  21843 apache-2.0          -      -
vit_small_patch32_384.augreg_in21k_ft_in1k               half       1.0   1000 apache-2.0     80.476 95.594
vit_small_patch16_224.augreg_in21k_ft_in1k               half       0.9   1000 apache-2.0     81.402 96.150
vit_small_patch16_224.augreg_in1k                        half       0.9   1000 apache-2.0     78.842 94.280
vit_small_patch16_224.augreg_in21k                       half       0.9  21843 apache-2.0          -      -
vit_small_patch16_224.dino                               imagenet   0.9      0 apache-2.0          -      -
vit_small_patch16_384.augreg_in21k_ft_in1k               half       1.0   1000 apache-2.0     83.814 97.106
vit_small_patch16_384.augreg_in1k                        half       1.0   1000 apache-2.0     81.130 95.590
vit_small_patch8_224.dino                                imagenet   0.9      0 apache-2.0          -      -
vit_base_patch32_224.augreg_in21k_ft_in1k                half       0.9   1000 apache-2.0     80.732 95.574
vit_base_patch32_224.augreg_in1k                         half       0.9   1000 apache-2.0     74.908 91.770
vit_base_patch32_224.orig_in21k                          half       0.9      0 apache-2.0          -      -
vit_base_patch32_224.augreg_in21k                        half       0.9  21843 apache-2.0          -      -
vit_base_patch32_224.sam_in1k                            half       0.9   1000 apache-2.0     73.704 91.012
vit_base_patch32_384.augreg_in21k_ft_in1k                half       1.0   1000 apache-2.0     83.358 96.828
vit_base_patch32_384.augreg_in1k                         half       1.0   1000 apache-2.0     78.750 94.238
vit_base_patch16_224.augreg2_in21k_ft_in1k               half       0.9   1000 apache-2.0     85.108 97.530
vit_base_patch16_224.augreg_in21k_ft_in1k                half       0.9   1000 apache-2.0     84.534 97.300
vit_base_patch16_224.orig_in21k_ft_in1k                  half       0.9   1000 apache-2.0     81.782 96.122
vit_base_patch16_224.augreg_in1k                         half       0.9   1000 apache-2.0     79.154 94.108
vit_base_patch16_224.orig_in21k                          half       0.9      0 apache-2.0          -      -
vit_base_patch16_224.augreg_in21k                        half       0.9  21843 apache-2.0          -      -
vit_base_patch16_224.sam_in1k                            half       0.9   1000 apache-2.0     80.246 94.764
vit_base_patch16_224.bamboo                              clip       1.0 115217 -                   -      -
vit_base_patch16_224.dino                                imagenet   0.9      0 apache-2.0          -      -
vit_base_patch16_224.mae                                 imagenet   0.9      0 cc-by-nc-4.0        -      -
vit_base_patch16_224_miil.in21k                          unit     0.875  11221 apache-2.0          -      - bilinear
vit_base_patch16_224_miil.in21k_ft_in1k                  unit     0.875   1000 apache-2.0     84.278 96.798 bilinear
vit_base_patch16_384.augreg_in21k_ft_in1k                half       1.0   1000 apache-2.0     86.010 97.998
vit_base_patch16_384.orig_in21k_ft_in1k                  half       1.0   1000 apache-2.0     84.212 97.210
vit_base_patch16_384.augreg_in1k                         half       1.0   1000 apache-2.0     81.102 95.334
vit_base_patch8_224.augreg2_in21k_ft_in1k                half       0.9   1000 apache-2.0     86.252 97.840
vit_base_patch8_224.augreg_in21k_ft_in1k                 half       0.9   1000 apache-2.0     85.838 97.776
vit_base_patch8_224.augreg_in21k                         half       0.9  21843 apache-2.0          -      -
vit_base_patch8_224.dino                                 imagenet   0.9      0 apache-2.0          -      -
vit_base_patch32_plus_256.untrained                      half      0.95   1000 apache-2.0          -      -
vit_base_patch16_plus_240.untrained                      half      0.95   1000 apache-2.0          -      -
vit_large_patch32_224.orig_in21k                         half       0.9      0 apache-2.0          -      -
vit_large_patch32_384.orig_in21k_ft_in1k                 half       1.0   1000 apache-2.0     81.508 96.086
vit_large_patch16_224.augreg_in21k_ft_in1k               half       0.9   1000 apache-2.0     85.856 97.822
vit_large_patch16_224.orig_in21k                         half       0.9      0 apache-2.0          -      -
vit_large_patch16_224.augreg_in21k                       half       0.9  21843 apache-2.0          -      -
vit_large_patch16_224.mae                                imagenet   0.9      0 cc-by-nc-4.0        -      -
vit_large_patch16_384.augreg_in21k_ft_in1k               half       1.0   1000 apache-2.0     87.096 98.302
vit_large_patch14_224.untrained                          half       0.9   1000 apache-2.0          -      -
vit_huge_patch14_224.orig_in21k                          half       0.9      0 apache-2.0          -      -
vit_huge_patch14_224.untrained                           half       0.9   1000 apache-2.0          -      -
vit_huge_patch14_224.mae                                 imagenet   0.9      0 cc-by-nc-4.0        -      -
vit_giant_patch14_224.untrained                          half       0.9   1000 apache-2.0          -      -
vit_gigantic_patch14_224.untrained                       half       0.9   1000 apache-2.0          -      -
vit_medium_patch16_gap_240.sw_in12k                      half      0.95  11821 apache-2.0          -      -
vit_medium_patch16_gap_256.sw_in12k_ft_in1k              half      0.95   1000 apache-2.0     84.442 97.214
vit_medium_patch16_gap_384.sw_in12k_ft_in1k              half      0.95   1000 apache-2.0     85.556 97.638 squash
vit_betwixt_patch16_gap_256.untrained                    half      0.95   1000 apache-2.0          -      -
vit_base_patch16_gap_224.untrained                       half       0.9   1000 apache-2.0          -      -
vit_huge_patch16_gap_448.in1k_ijepa                      imagenet   1.0      0 cc-by-nc-4.0        -      - nohub
vit_huge_patch14_gap_224.in1k_ijepa                      imagenet   0.9      0 cc-by-nc-4.0        -      - nohub
vit_huge_patch14_gap_224.in22k_ijepa                     imagenet   0.9      0 cc-by-nc-4.0        -      - nohub
vit_giant_patch16_gap_224.in22k_ijepa                    imagenet   0.9      0 cc-by-nc-4.0        -      - nohub
vit_wee_patch16_reg1_gap_256.sbb_in1k                    half      0.95   1000 apache-2.0     80.262 95.360
vit_little_patch16_reg1_gap_256.sbb_in12k_ft_in1k        half      0.95   1000 apache-2.0     83.800 96.972
vit_little_patch16_reg1_gap_256.sbb_in12k                half      0.95  11821 apache-2.0          -      -
vit_little_patch16_reg4_gap_256.sbb_in1k                 half      0.95   1000 apache-2.0     82.520 96.258
vit_medium_patch16_reg1_gap_256.sbb_in1k                 half      0.95   1000 apache-2.0     83.462 96.548
vit_medium_patch16_reg4_gap_256.sbb_in12k_ft_in1k        half      0.95   1000 apache-2.0     84.956 97.384
vit_medium_patch16_reg4_gap_256.sbb_in1k                 half      0.95   1000 apache-2.0     83.466 96.622
vit_medium_patch16_reg4_gap_256.sbb_in12k                half      0.95  11821 apache-2.0          -      -
vit_mediumd_patch16_reg4_gap_256.sbb2_e200_in12k_ft_in1k half      0.95   1000 apache-2.0     86.608 97.934
vit_mediumd_patch16_reg4_gap_256.sbb_in12k_ft_in1k       half      0.95   1000 apache-2.0     86.198 97.888
vit_mediumd_patch16_reg4_gap_256.sbb2_e200_in12k         half      0.95  11821 apache-2.0          -      -
vit_mediumd_patch16_reg4_gap_256.sbb_in12k               half      0.95  11821 apache-2.0          -      -
vit_mediumd_patch16_reg4_gap_384.sbb2_e200_in12k_ft_in1k half       1.0   1000 apache-2.0     87.438 98.256
vit_betwixt_patch16_reg1_gap_256.sbb_in1k                half      0.95   1000 apache-2.0     83.652 96.546
vit_betwixt_patch16_reg4_gap_256.sbb2_e200_in12k_ft_in1k half      0.95   1000 apache-2.0     85.734 97.610
vit_betwixt_patch16_reg4_gap_256.sbb_in12k_ft_in1k       half      0.95   1000 apache-2.0     85.426 97.478
vit_betwixt_patch16_reg4_gap_256.sbb_in1k                half      0.95   1000 apache-2.0     83.710 96.616
vit_betwixt_patch16_reg4_gap_256.sbb2_e200_in12k         half      0.95  11821 apache-2.0          -      -
vit_betwixt_patch16_reg4_gap_256.sbb_in12k               half      0.95  11821 apache-2.0          -      -
vit_betwixt_patch16_reg4_gap_384.sbb2_e200_in12k_ft_in1k half       1.0   1000 apache-2.0     86.618 98.010
vit_base_patch16_reg4_gap_256.untrained                  half       0.9   1000 apache-2.0          -      -
vit_so150m2_patch16_reg1_gap_256.sbb_e200_in12k_ft_in1k  half       1.0   1000 apache-2.0     87.318 98.328
vit_so150m2_patch16_reg1_gap_256.sbb_e200_in12k          half       1.0  11821 apache-2.0          -      -
vit_so150m2_patch16_reg1_gap_384.sbb_e200_in12k_ft_in1k  half       1.0   1000 apache-2.0     87.932 98.500
vit_so150m2_patch16_reg1_gap_448.sbb_e200_in12k_ft_in1k  half       1.0   1000 apache-2.0     88.074 98.558 squash
vit_so150m_patch16_reg4_gap_256.sbb_e250_in12k_ft_in1k   half      0.95   1000 apache-2.0     86.720 98.024
vit_so150m_patch16_reg4_gap_256.sbb_e250_in12k           half      0.95  11821 apache-2.0          -      -
vit_so150m_patch16_reg4_gap_384.sbb_e250_in12k_ft_in1k   half       1.0   1000 apache-2.0     87.370 98.314
vit_xsmall_patch16_clip_224.tinyclip_yfcc15m             clip       0.9    512 mit                 -      -
vit_medium_patch32_clip_224.tinyclip_laion400m           clip       0.9    512 mit                 -      -
vit_medium_patch16_clip_224.tinyclip_yfcc15m             clip       0.9    512 mit                 -      -
vit_betwixt_patch32_clip_224.tinyclip_laion400m          clip       0.9    512 mit                 -      -
vit_base_patch32_clip_224.laion2b_ft_in12k_in1k          clip       0.9   1000 apache-2.0     83.304 96.528
vit_base_patch32_clip_224.openai_ft_in12k_in1k           clip       0.9   1000 apache-2.0          -      - nohub
vit_base_patch32_clip_224.laion2b_ft_in1k                clip       0.9   1000 apache-2.0     82.614 96.206
vit_base_patch32_clip_224.openai_ft_in1k                 clip       0.9   1000 apache-2.0     81.944 95.972
vit_base_patch32_clip_224.laion2b                        clip       0.9    512 apache-2.0          -      -
vit_base_patch32_clip_224.laion400m_e32                  clip       0.9    512 mit                 -      - quickgelu
vit_base_patch32_clip_224.datacompxl                     clip       1.0    512 apache-2.0          -      -
vit_base_patch32_clip_224.metaclip_2pt5b                 clip       1.0    512 cc-by-nc-4.0        -      - quickgelu
vit_base_patch32_clip_224.metaclip_400m                  clip       1.0    512 cc-by-nc-4.0        -      - quickgelu
vit_base_patch32_clip_224.openai                         clip       0.9    512 apache-2.0          -      - quickgelu
vit_base_patch32_clip_256.datacompxl                     clip       1.0    512 apache-2.0          -      -
vit_base_patch32_clip_384.laion2b_ft_in12k_in1k          clip       1.0   1000 apache-2.0     85.398 97.664
vit_base_patch32_clip_384.openai_ft_in12k_in1k           clip      0.95   1000 apache-2.0     85.218 97.398 squash
vit_base_patch32_clip_448.laion2b_ft_in12k_in1k          clip       1.0   1000 apache-2.0     85.792 97.634
vit_base_patch16_clip_224.laion2b_ft_in12k_in1k          clip      0.95   1000 apache-2.0     86.204 97.762
vit_base_patch16_clip_224.openai_ft_in12k_in1k           clip      0.95   1000 apache-2.0     85.954 97.724
vit_base_patch16_clip_224.laion2b_ft_in1k                clip       1.0   1000 apache-2.0     85.488 97.586
vit_base_patch16_clip_224.openai_ft_in1k                 clip       0.9   1000 apache-2.0     85.282 97.448
vit_base_patch16_clip_224.laion2b_ft_in12k               clip       0.9  11821 apache-2.0          -      -
vit_base_patch16_clip_224.openai_ft_in12k                clip       0.9  11821 apache-2.0          -      -
vit_base_patch16_clip_224.laion2b                        clip       1.0    512 apache-2.0          -      -
vit_base_patch16_clip_224.laion400m_e32                  clip       1.0    512 mit                 -      -
vit_base_patch16_clip_224.datacompxl                     clip       1.0    512 apache-2.0          -      -
vit_base_patch16_clip_224.dfn2b                          clip       1.0    512 apple-ascl          -      -
vit_base_patch16_clip_224.metaclip_2pt5b                 clip       1.0    512 cc-by-nc-4.0        -      - quickgelu
vit_base_patch16_clip_224.metaclip_400m                  clip       1.0    512 cc-by-nc-4.0        -      - quickgelu
vit_base_patch16_clip_224.openai                         clip       0.9    512 apache-2.0          -      - quickgelu
vit_base_patch16_clip_384.laion2b_ft_in12k_in1k          clip       1.0   1000 apache-2.0     87.210 98.032 squash
vit_base_patch16_clip_384.openai_ft_in12k_in1k           clip      0.95   1000 apache-2.0     87.030 98.186 squash
vit_base_patch16_clip_384.laion2b_ft_in1k                clip       1.0   1000 apache-2.0     86.638 98.008 squash
vit_base_patch16_clip_384.openai_ft_in1k                 clip       1.0   1000 apache-2.0     86.210 97.894 squash
vit_base_patch16_plus_clip_240.laion400m_e32             clip       1.0    640 mit                 -      -
vit_large_patch14_clip_224.laion2b_ft_in12k_in1k         half       1.0   1000 apache-2.0     87.900 98.408
vit_large_patch14_clip_224.openai_ft_in12k_in1k          clip       1.0   1000 apache-2.0     88.162 98.538
vit_large_patch14_clip_224.laion2b_ft_in1k               half       1.0   1000 apache-2.0     87.288 98.236
vit_large_patch14_clip_224.openai_ft_in1k                clip       1.0   1000 apache-2.0     87.858 98.430
vit_large_patch14_clip_224.laion2b_ft_in12k              half       1.0  11821 apache-2.0          -      -
vit_large_patch14_clip_224.openai_ft_in12k               clip       1.0  11821 apache-2.0          -      -
vit_large_patch14_clip_224.laion2b                       half       1.0    768 apache-2.0          -      -
vit_large_patch14_clip_224.laion400m_e32                 clip       1.0    768 mit                 -      -
vit_large_patch14_clip_224.datacompxl                    clip       1.0    768 apache-2.0          -      -
vit_large_patch14_clip_224.dfn2b_s39b                    clip       1.0    768 apple-ascl          -      -
vit_large_patch14_clip_224.dfn2b                         clip       1.0    768 apple-ascl          -      - quickgelu
vit_large_patch14_clip_224.metaclip_2pt5b                clip       1.0    768 cc-by-nc-4.0        -      - quickgelu
vit_large_patch14_clip_224.metaclip_400m                 clip       1.0    768 cc-by-nc-4.0        -      - quickgelu
vit_large_patch14_clip_224.openai                        clip       1.0    768 apache-2.0          -      - quickgelu
vit_large_patch14_clip_224.apple_mclip2_dfndr2b          clip       1.0    768 apple-amlr          -      -
vit_large_patch14_clip_336.laion2b_ft_in12k_in1k         half       1.0   1000 apache-2.0     88.190 98.566 squash
vit_large_patch14_clip_336.openai_ft_in12k_in1k          clip       1.0   1000 apache-2.0     88.260 98.524 squash
vit_large_patch14_clip_336.laion2b_ft_in1k               half       1.0   1000 apache-2.0     87.870 98.360 squash
vit_large_patch14_clip_336.openai                        clip       1.0    768 apache-2.0          -      - quickgelu
vit_huge_patch14_clip_224.laion2b_ft_in12k_in1k          clip       1.0   1000 apache-2.0     88.288 98.550
vit_huge_patch14_clip_224.laion2b_ft_in1k                clip       1.0   1000 apache-2.0     87.612 98.226
vit_huge_patch14_clip_224.laion2b_ft_in12k               clip       1.0  11821 apache-2.0          -      -
vit_huge_patch14_clip_224.laion2b                        clip       1.0   1024 apache-2.0          -      -
vit_huge_patch14_clip_224.dfn5b                          clip       1.0   1024 apple-ascl          -      - quickgelu
vit_huge_patch14_clip_224.metaclip2_worldwide            clip       1.0   1024 cc-by-nc-4.0        -      - quickgelu
vit_huge_patch14_clip_224.metaclip_2pt5b                 clip       1.0   1024 cc-by-nc-4.0        -      - quickgelu
vit_huge_patch14_clip_224.metaclip_altogether            clip       1.0   1024 cc-by-nc-4.0        -      -
vit_huge_patch14_clip_336.laion2b_ft_in12k_in1k          clip       1.0   1000 apache-2.0     88.634 98.668 squash
vit_huge_patch14_clip_336.laion2b_ft_in1k                clip       1.0   1000 apache-2.0          -      - squash nohub
vit_huge_patch14_clip_378.dfn5b                          clip       1.0   1024 apple-ascl          -      - quickgelu
vit_huge_patch14_clip_378.metaclip2_worldwide            clip       1.0   1024 cc-by-nc-4.0        -      - squash
vit_giant_patch14_clip_224.laion2b                       clip       1.0   1024 apache-2.0          -      -
vit_gigantic_patch14_clip_224.laion2b                    clip       1.0   1280 apache-2.0          -      -
vit_gigantic_patch14_clip_224.metaclip2_worldwide        clip       1.0   1280 cc-by-nc-4.0        -      -
vit_gigantic_patch14_clip_224.metaclip_2pt5b             clip       1.0   1280 cc-by-nc-4.0        -      - quickgelu
vit_gigantic_patch14_clip_378.metaclip2_worldwide        clip       1.0   1280 cc-by-nc-4.0        -      - squash
vit_base_patch32_clip_quickgelu_224.laion400m_e32        clip       0.9    512 mit                 -      -
vit_base_patch32_clip_quickgelu_224.metaclip_2pt5b       clip       1.0    512 cc-by-nc-4.0        -      -
vit_base_patch32_clip_quickgelu_224.metaclip_400m        clip       1.0    512 cc-by-nc-4.0        -      -
vit_base_patch32_clip_quickgelu_224.openai               clip       0.9    512 apache-2.0          -      -
vit_base_patch16_clip_quickgelu_224.metaclip_2pt5b       clip       1.0    512 cc-by-nc-4.0        -      -
vit_base_patch16_clip_quickgelu_224.metaclip_400m        clip       1.0    512 cc-by-nc-4.0        -      -
vit_base_patch16_clip_quickgelu_224.openai               clip       0.9    512 apache-2.0          -      -
vit_large_patch14_clip_quickgelu_224.dfn2b               clip       1.0    768 apple-ascl          -      -
vit_large_patch14_clip_quickgelu_224.metaclip_2pt5b      clip       1.0    768 cc-by-nc-4.0        -      -
vit_large_patch14_clip_quickgelu_224.metaclip_400m       clip       1.0    768 cc-by-nc-4.0        -      -
vit_large_patch14_clip_quickgelu_224.openai              clip       1.0    768 apache-2.0          -      -
vit_large_patch14_clip_quickgelu_336.openai              clip       1.0    768 apache-2.0          -      -
vit_huge_patch14_clip_quickgelu_224.dfn5b                clip       1.0   1024 apple-ascl          -      -
vit_huge_patch14_clip_quickgelu_224.metaclip2_worldwide  clip       1.0   1024 cc-by-nc-4.0        -      -
vit_huge_patch14_clip_quickgelu_224.metaclip_2pt5b       clip       1.0   1024 cc-by-nc-4.0        -      -
vit_huge_patch14_clip_quickgelu_378.dfn5b                clip       1.0   1024 apple-ascl          -      -
vit_gigantic_patch14_clip_quickgelu_224.metaclip_2pt5b   clip       1.0   1280 cc-by-nc-4.0        -      -
vit_base_patch32_siglip_gap_256.v2_webli                 half       0.9      0 apache-2.0          -      -
vit_base_patch16_siglip_gap_224.v2_webli                 half       0.9      0 apache-2.0          -      -
vit_base_patch16_siglip_gap_224.webli                    half       0.9      0 apache-2.0          -      -
vit_base_patch16_siglip_gap_256.v2_webli                 half       0.9      0 apache-2.0          -      -
vit_base_patch16_siglip_gap_256.webli                    half       0.9      0 apache-2.0          -      -
vit_base_patch16_siglip_gap_256.webli_i18n               half       0.9      0 apache-2.0          -      -
vit_base_patch16_siglip_gap_384.v2_webli                 half       0.9      0 apache-2.0          -      -
vit_base_patch16_siglip_gap_384.webli                    half       0.9      0 apache-2.0          -      -
vit_base_patch16_siglip_gap_512.v2_webli                 half       0.9      0 apache-2.0          -      -
vit_base_patch16_siglip_gap_512.webli                    half       0.9      0 apache-2.0          -      -
vit_large_patch16_siglip_gap_256.v2_webli                half       0.9      0 apache-2.0          -      -
vit_large_patch16_siglip_gap_256.webli                   half       0.9      0 apache-2.0          -      -
vit_large_patch16_siglip_gap_384.v2_webli                half       0.9      0 apache-2.0          -      -
vit_large_patch16_siglip_gap_384.webli                   half       0.9      0 apache-2.0          -      -
vit_large_patch16_siglip_gap_512.v2_webli                half       0.9      0 apache-2.0          -      -
vit_so400m_patch16_siglip_gap_256.v2_webli               half       0.9      0 apache-2.0          -      -
vit_so400m_patch16_siglip_gap_256.webli_i18n             half       0.9      0 apache-2.0          -      -
vit_so400m_patch16_siglip_gap_384.v2_webli               half       0.9      0 apache-2.0          -      -
vit_so400m_patch16_siglip_gap_512.v2_webli               half       0.9      0 apache-2.0          -      -
vit_so400m_patch14_siglip_gap_224.v2_webli               half       0.9      0 apache-2.0          -      -
vit_so400m_patch14_siglip_gap_224.webli                  half       0.9      0 apache-2.0          -      -
vit_so400m_patch14_siglip_gap_224.pali_mix               half       0.9      0 apache-2.0          -      -
vit_so400m_patch14_siglip_gap_224.pali_pt                half       0.9      0 apache-2.0          -      -
vit_so400m_patch14_siglip_gap_224.pali2_3b_pt            half       0.9      0 apache-2.0          -      -
vit_so400m_patch14_siglip_gap_224.pali2_10b_pt           half       0.9      0 apache-2.0          -      -
vit_so400m_patch14_siglip_gap_378.v2_webli               half       0.9      0 apache-2.0          -      -
vit_so400m_patch14_siglip_gap_378.webli                  half       1.0      0 apache-2.0          -      -
vit_so400m_patch14_siglip_gap_378.webli_ft_in1k          half       1.0   1000 apache-2.0     89.056 98.752 squash
vit_so400m_patch14_siglip_gap_448.pali_mix               half       1.0      0 apache-2.0          -      -
vit_so400m_patch14_siglip_gap_448.pali_pt                half       1.0      0 apache-2.0          -      -
vit_so400m_patch14_siglip_gap_448.pali_refcoco_seg       half       1.0      0 apache-2.0          -      -
vit_so400m_patch14_siglip_gap_448.pali_ocrvqa            half       1.0      0 apache-2.0          -      -
vit_so400m_patch14_siglip_gap_448.pali2_3b_pt            half       1.0      0 apache-2.0          -      -
vit_so400m_patch14_siglip_gap_448.pali2_10b_pt           half       1.0      0 apache-2.0          -      -
vit_so400m_patch14_siglip_gap_448.pali2_3b_docci         half       1.0      0 apache-2.0          -      -
vit_so400m_patch14_siglip_gap_448.pali2_10b_docci        half       1.0      0 apache-2.0          -      -
vit_so400m_patch14_siglip_gap_896.pali_pt                half       1.0      0 apache-2.0          -      -
vit_so400m_patch14_siglip_gap_896.pali_refcoco_seg       half       1.0      0 apache-2.0          -      -
vit_so400m_patch14_siglip_gap_896.pali_ocrvqa            half       1.0      0 apache-2.0          -      -
vit_so400m_patch14_siglip_gap_896.pali2_3b_pt            half       1.0      0 apache-2.0          -      -
vit_so400m_patch14_siglip_gap_896.pali2_10b_pt           half       1.0      0 apache-2.0          -      -
vit_giantopt_patch16_siglip_gap_256.v2_webli             half       0.9      0 apache-2.0          -      -
vit_giantopt_patch16_siglip_gap_384.v2_webli             half       0.9      0 apache-2.0          -      -
vit_base_patch14_reg1_tipsv2.webli                       unit       1.0      0 apache-2.0          -      -
vit_large_patch14_reg1_tipsv2.webli                      unit       1.0      0 apache-2.0          -      -
vit_so400m_patch14_reg1_tipsv2.webli                     unit       1.0      0 apache-2.0          -      -
vit_giant_patch14_reg1_tipsv2.webli                      unit       1.0      0 apache-2.0          -      -
vit_small_patch14_dinov2.lvd142m                         imagenet   1.0      0 apache-2.0          -      -
vit_small_patch14_reg4_dinov2.lvd142m                    imagenet   1.0      0 apache-2.0          -      -
vit_base_patch14_dinov2.lvd142m                          imagenet   1.0      0 apache-2.0          -      -
vit_base_patch14_reg4_dinov2.lvd142m                     imagenet   1.0      0 apache-2.0          -      -
vit_large_patch14_dinov2.lvd142m                         imagenet   1.0      0 apache-2.0          -      -
vit_large_patch14_reg4_dinov2.lvd142m                    imagenet   1.0      0 apache-2.0          -      -
vit_giant_patch14_dinov2.lvd142m                         imagenet   1.0      0 apache-2.0          -      -
vit_giant_patch14_reg4_dinov2.lvd142m                    imagenet   1.0      0 apache-2.0          -      -
deit_tiny_patch16_224.fb_in1k                            imagenet   0.9   1000 apache-2.0     72.190 91.100
deit_small_patch16_224.fb_in1k                           imagenet   0.9   1000 apache-2.0     79.856 95.056
deit_base_patch16_224.fb_in1k                            imagenet   0.9   1000 apache-2.0     81.980 95.740
deit_base_patch16_384.fb_in1k                            imagenet   1.0   1000 apache-2.0     83.108 96.376
deit_tiny_distilled_patch16_224.fb_in1k                  imagenet   0.9   1000 apache-2.0     74.538 91.898
deit_small_distilled_patch16_224.fb_in1k                 imagenet   0.9   1000 apache-2.0     81.204 95.378
deit_base_distilled_patch16_224.fb_in1k                  imagenet   0.9   1000 apache-2.0     83.384 96.492
deit_base_distilled_patch16_384.fb_in1k                  imagenet   1.0   1000 apache-2.0     85.438 97.332
deit3_small_patch16_224.fb_in1k                          imagenet   0.9   1000 apache-2.0     81.382 95.454
deit3_small_patch16_224.fb_in22k_ft_in1k                 imagenet   1.0   1000 apache-2.0     83.082 96.774
deit3_small_patch16_384.fb_in1k                          imagenet   1.0   1000 apache-2.0     83.432 96.674
deit3_small_patch16_384.fb_in22k_ft_in1k                 imagenet   1.0   1000 apache-2.0     84.846 97.486
deit3_medium_patch16_224.fb_in1k                         imagenet   0.9   1000 apache-2.0     83.090 96.284
deit3_medium_patch16_224.fb_in22k_ft_in1k                imagenet   1.0   1000 apache-2.0     84.550 97.180
deit3_base_patch16_224.fb_in1k                           imagenet   0.9   1000 apache-2.0     83.800 96.584
deit3_base_patch16_224.fb_in22k_ft_in1k                  imagenet   1.0   1000 apache-2.0     85.728 97.746
deit3_base_patch16_384.fb_in1k                           imagenet   1.0   1000 apache-2.0     85.088 97.252
deit3_base_patch16_384.fb_in22k_ft_in1k                  imagenet   1.0   1000 apache-2.0     86.742 98.110
deit3_large_patch16_224.fb_in1k                          imagenet   0.9   1000 apache-2.0     84.772 97.048
deit3_large_patch16_224.fb_in22k_ft_in1k                 imagenet   1.0   1000 apache-2.0     86.990 98.246
deit3_large_patch16_384.fb_in1k                          imagenet   1.0   1000 apache-2.0     85.820 97.602
deit3_large_patch16_384.fb_in22k_ft_in1k                 imagenet   1.0   1000 apache-2.0     87.736 98.508
deit3_huge_patch14_224.fb_in1k                           imagenet   0.9   1000 apache-2.0     85.204 97.364
deit3_huge_patch14_224.fb_in22k_ft_in1k                  imagenet   1.0   1000 apache-2.0     87.180 98.264
mobilevit_s.cvnets_in1k                                  unit       0.9   1000 cvnets-license 78.298 94.168
mobilevit_xs.cvnets_in1k                                 unit       0.9   1000 cvnets-license 74.618 92.350
mobilevit_xxs.cvnets_in1k                                unit       0.9   1000 cvnets-license 68.936 88.942
mobilevitv2_050.cvnets_in1k                              unit     0.888   1000 cvnets-license 70.156 89.930
mobilevitv2_075.cvnets_in1k                              unit     0.888   1000 cvnets-license 75.612 92.754
mobilevitv2_100.cvnets_in1k                              unit     0.888   1000 cvnets-license 78.088 94.170
mobilevitv2_125.cvnets_in1k                              unit     0.888   1000 cvnets-license 79.682 94.844
mobilevitv2_150.cvnets_in1k                              unit     0.888   1000 cvnets-license 80.380 95.050
mobilevitv2_150.cvnets_in22k_ft_in1k                     unit     0.888   1000 cvnets-license 81.466 95.678
mobilevitv2_150.cvnets_in22k_ft_in1k_384                 unit       1.0   1000 cvnets-license 82.606 96.314 size=384
mobilevitv2_175.cvnets_in1k                              unit     0.888   1000 cvnets-license 80.870 95.280
mobilevitv2_175.cvnets_in22k_ft_in1k                     unit     0.888   1000 cvnets-license 81.950 95.796
mobilevitv2_175.cvnets_in22k_ft_in1k_384                 unit       1.0   1000 cvnets-license 82.920 96.450 size=384
mobilevitv2_200.cvnets_in1k                              unit     0.888   1000 cvnets-license 81.148 95.380
mobilevitv2_200.cvnets_in22k_ft_in1k                     unit     0.888   1000 cvnets-license 82.320 95.942
mobilevitv2_200.cvnets_in22k_ft_in1k_384                 unit       1.0   1000 cvnets-license 83.430 96.576 size=384
levit_128.fb_dist_in1k                                   imagenet   0.9   1000 apache-2.0     78.486 93.998
levit_128s.fb_dist_in1k                                  imagenet   0.9   1000 apache-2.0     76.520 92.870
levit_192.fb_dist_in1k                                   imagenet   0.9   1000 apache-2.0     79.858 94.808
levit_256.fb_dist_in1k                                   imagenet   0.9   1000 apache-2.0     81.506 95.466
levit_256d.untrained                                     imagenet   0.9   1000 apache-2.0          -      -
levit_384.fb_dist_in1k                                   imagenet   0.9   1000 apache-2.0     82.600 96.020
levit_384_s8.untrained                                   imagenet   0.9   1000 apache-2.0          -      -
levit_512.untrained                                      imagenet   0.9   1000 apache-2.0          -      -
levit_512_s8.untrained                                   imagenet   0.9   1000 apache-2.0          -      -
levit_512d.untrained                                     imagenet   0.9   1000 apache-2.0          -      -
levit_conv_128.fb_dist_in1k                              imagenet   0.9   1000 apache-2.0     78.488 94.000
levit_conv_128s.fb_dist_in1k                             imagenet   0.9   1000 apache-2.0     76.534 92.882
levit_conv_192.fb_dist_in1k                              imagenet   0.9   1000 apache-2.0     79.860 94.802
levit_conv_256.fb_dist_in1k                              imagenet   0.9   1000 apache-2.0     81.506 95.466
levit_conv_256d.untrained                                imagenet   0.9   1000 apache-2.0          -      -
levit_conv_384.fb_dist_in1k                              imagenet   0.9   1000 apache-2.0     82.600 96.020
levit_conv_384_s8.untrained                              imagenet   0.9   1000 apache-2.0          -      -
levit_conv_512.untrained                                 imagenet   0.9   1000 apache-2.0          -      -
levit_conv_512_s8.untrained                              imagenet   0.9   1000 apache-2.0          -      -
levit_conv_512d.untrained                                imagenet   0.9   1000 apache-2.0          -      -
cait_xxs24_224.fb_dist_in1k                              imagenet   1.0   1000 apache-2.0     78.400 94.326
cait_xxs24_384.fb_dist_in1k                              imagenet   1.0   1000 apache-2.0     80.954 95.638
cait_xxs36_224.fb_dist_in1k                              imagenet   1.0   1000 apache-2.0     79.750 94.866
cait_xxs36_384.fb_dist_in1k                              imagenet   1.0   1000 apache-2.0     82.204 96.148
cait_xs24_384.fb_dist_in1k                               imagenet   1.0   1000 apache-2.0     84.064 96.888
cait_s24_224.fb_dist_in1k                                imagenet   1.0   1000 apache-2.0     83.484 96.586
cait_s24_384.fb_dist_in1k                                imagenet   1.0   1000 apache-2.0     85.048 97.350
cait_s36_384.fb_dist_in1k                                imagenet   1.0   1000 apache-2.0     85.458 97.480
cait_m36_384.fb_dist_in1k                                imagenet   1.0   1000 apache-2.0     86.060 97.732
cait_m48_448.fb_dist_in1k                                imagenet   1.0   1000 apache-2.0     86.480 97.748
xcit_nano_12_p16_224.fb_in1k                             imagenet   1.0   1000 apache-2.0     69.982 89.780
xcit_nano_12_p16_224.fb_dist_in1k                        imagenet   1.0   1000 apache-2.0     72.318 90.826
xcit_nano_12_p16_384.fb_dist_in1k                        imagenet   1.0   1000 apache-2.0     75.460 92.672
xcit_tiny_12_p16_224.fb_in1k                             imagenet   1.0   1000 apache-2.0     77.122 93.728
xcit_tiny_12_p16_224.fb_dist_in1k                        imagenet   1.0   1000 apache-2.0     78.572 94.210
xcit_tiny_12_p16_384.fb_dist_in1k                        imagenet   1.0   1000 apache-2.0     80.954 95.430
xcit_tiny_24_p16_224.fb_in1k                             imagenet   1.0   1000 apache-2.0     79.474 94.878
xcit_tiny_24_p16_224.fb_dist_in1k                        imagenet   1.0   1000 apache-2.0     80.462 95.202
xcit_tiny_24_p16_384.fb_dist_in1k                        imagenet   1.0   1000 apache-2.0     82.580 96.254
xcit_small_12_p16_224.fb_in1k                            imagenet   1.0   1000 apache-2.0     81.982 95.814
xcit_small_12_p16_224.fb_dist_in1k                       imagenet   1.0   1000 apache-2.0     83.354 96.420
xcit_small_12_p16_384.fb_dist_in1k                       imagenet   1.0   1000 apache-2.0     84.734 97.136
xcit_small_24_p16_224.fb_in1k                            imagenet   1.0   1000 apache-2.0     82.588 95.996
xcit_small_24_p16_224.fb_dist_in1k                       imagenet   1.0   1000 apache-2.0     83.880 96.734
xcit_small_24_p16_384.fb_dist_in1k                       imagenet   1.0   1000 apache-2.0     85.102 97.318
xcit_medium_24_p16_224.fb_in1k                           imagenet   1.0   1000 apache-2.0     82.630 95.978
xcit_medium_24_p16_224.fb_dist_in1k                      imagenet   1.0   1000 apache-2.0     84.292 96.936
xcit_medium_24_p16_384.fb_dist_in1k                      imagenet   1.0   1000 apache-2.0     85.434 97.408
xcit_large_24_p16_224.fb_in1k                            imagenet   1.0   1000 apache-2.0     82.886 95.880
xcit_large_24_p16_224.fb_dist_in1k                       imagenet   1.0   1000 apache-2.0     84.936 97.128
xcit_large_24_p16_384.fb_dist_in1k                       imagenet   1.0   1000 apache-2.0     85.778 97.530
xcit_nano_12_p8_224.fb_in1k                              imagenet   1.0   1000 apache-2.0     73.900 92.154
xcit_nano_12_p8_224.fb_dist_in1k                         imagenet   1.0   1000 apache-2.0     76.330 93.070
xcit_nano_12_p8_384.fb_dist_in1k                         imagenet   1.0   1000 apache-2.0     77.810 94.036
xcit_tiny_12_p8_224.fb_in1k                              imagenet   1.0   1000 apache-2.0     79.710 95.058
xcit_tiny_12_p8_224.fb_dist_in1k                         imagenet   1.0   1000 apache-2.0     81.214 95.614
xcit_tiny_12_p8_384.fb_dist_in1k                         imagenet   1.0   1000 apache-2.0     82.394 96.222
xcit_tiny_24_p8_224.fb_in1k                              imagenet   1.0   1000 apache-2.0     81.888 95.978
xcit_tiny_24_p8_224.fb_dist_in1k                         imagenet   1.0   1000 apache-2.0     82.578 96.186
xcit_tiny_24_p8_384.fb_dist_in1k                         imagenet   1.0   1000 apache-2.0     83.784 96.716
xcit_small_12_p8_224.fb_in1k                             imagenet   1.0   1000 apache-2.0     83.354 96.472
xcit_small_12_p8_224.fb_dist_in1k                        imagenet   1.0   1000 apache-2.0     84.252 96.874
xcit_small_12_p8_384.fb_dist_in1k                        imagenet   1.0   1000 apache-2.0     85.068 97.264
xcit_small_24_p8_224.fb_in1k                             imagenet   1.0   1000 apache-2.0     83.854 96.636
xcit_small_24_p8_224.fb_dist_in1k                        imagenet   1.0   1000 apache-2.0     84.878 97.200
xcit_small_24_p8_384.fb_dist_in1k                        imagenet   1.0   1000 apache-2.0     85.580 97.572
xcit_medium_24_p8_224.fb_in1k                            imagenet   1.0   1000 apache-2.0     83.744 96.394
xcit_medium_24_p8_224.fb_dist_in1k                       imagenet   1.0   1000 apache-2.0     85.078 97.274
xcit_medium_24_p8_384.fb_dist_in1k                       imagenet   1.0   1000 apache-2.0     85.842 97.602
xcit_large_24_p8_224.fb_in1k                             imagenet   1.0   1000 apache-2.0     84.380 96.664
xcit_large_24_p8_224.fb_dist_in1k                        imagenet   1.0   1000 apache-2.0     85.396 97.418
xcit_large_24_p8_384.fb_dist_in1k                        imagenet   1.0   1000 apache-2.0     86.024 97.690
pit_ti_224.in1k                                          imagenet   0.9   1000 apache-2.0     72.926 91.412
pit_ti_distilled_224.in1k                                imagenet   0.9   1000 apache-2.0     74.276 91.920
pit_xs_224.in1k                                          imagenet   0.9   1000 apache-2.0     78.196 94.156
pit_xs_distilled_224.in1k                                imagenet   0.9   1000 apache-2.0     79.172 94.350
pit_s_224.in1k                                           imagenet   0.9   1000 apache-2.0     81.114 95.336
pit_s_distilled_224.in1k                                 imagenet   0.9   1000 apache-2.0     81.826 95.720
pit_b_224.in1k                                           imagenet   0.9   1000 apache-2.0     82.458 95.704
pit_b_distilled_224.in1k                                 imagenet   0.9   1000 apache-2.0     83.774 96.468
twins_pcpvt_small.in1k                                   imagenet   0.9   1000 apache-2.0     81.116 95.624
twins_pcpvt_base.in1k                                    imagenet   0.9   1000 apache-2.0     82.724 96.350
twins_pcpvt_large.in1k                                   imagenet   0.9   1000 apache-2.0     83.158 96.626
twins_svt_small.in1k                                     imagenet   0.9   1000 apache-2.0     81.694 95.670
twins_svt_base.in1k                                      imagenet   0.9   1000 apache-2.0     83.122 96.430
twins_svt_large.in1k                                     imagenet   0.9   1000 apache-2.0     83.718 96.600
nest_tiny.untrained                                      imagenet 0.875   1000 apache-2.0          -      -
nest_small.untrained                                     imagenet 0.875   1000 apache-2.0          -      -
nest_base.untrained                                      imagenet 0.875   1000 apache-2.0          -      -
nest_tiny_jx.goog_in1k                                   imagenet 0.875   1000 apache-2.0     81.428 95.630
nest_small_jx.goog_in1k                                  imagenet 0.875   1000 apache-2.0     83.132 96.330
nest_base_jx.goog_in1k                                   imagenet 0.875   1000 apache-2.0     83.552 96.364
crossvit_tiny_240.in1k                                   imagenet 0.875   1000 apache-2.0     73.352 91.906
crossvit_small_240.in1k                                  imagenet 0.875   1000 apache-2.0     81.036 95.466
crossvit_base_240.in1k                                   imagenet 0.875   1000 apache-2.0     82.212 95.826
crossvit_9_240.in1k                                      imagenet 0.875   1000 apache-2.0     73.994 91.976
crossvit_15_240.in1k                                     imagenet 0.875   1000 apache-2.0     81.522 95.694
crossvit_18_240.in1k                                     imagenet 0.875   1000 apache-2.0     82.390 96.064
crossvit_9_dagger_240.in1k                               imagenet 0.875   1000 apache-2.0     76.990 93.602
crossvit_15_dagger_240.in1k                              imagenet 0.875   1000 apache-2.0     82.302 95.960
crossvit_15_dagger_408.in1k                              imagenet   1.0   1000 apache-2.0     83.842 96.786
crossvit_18_dagger_240.in1k                              imagenet 0.875   1000 apache-2.0     82.494 96.070
crossvit_18_dagger_408.in1k                              imagenet   1.0   1000 apache-2.0     84.198 96.834
maxvit_pico_rw_256.untrained                             half      0.95   1000 apache-2.0          -      -
maxvit_nano_rw_256.sw_in1k                               half      0.95   1000 apache-2.0     82.934 96.224
maxvit_tiny_rw_224.sw_in1k                               half      0.95   1000 apache-2.0     83.522 96.488
maxvit_tiny_rw_256.untrained                             half      0.95   1000 apache-2.0          -      -
maxvit_tiny_pm_256.untrained                             half      0.95   1000 apache-2.0          -      -
maxvit_rmlp_pico_rw_256.sw_in1k                          half      0.95   1000 apache-2.0     80.550 95.186
maxvit_rmlp_nano_rw_256.sw_in1k                          half      0.95   1000 apache-2.0     82.978 96.274
maxvit_rmlp_tiny_rw_256.sw_in1k                          half      0.95   1000 apache-2.0     84.226 96.782
maxvit_rmlp_small_rw_224.sw_in1k                         half       0.9   1000 apache-2.0     84.488 96.772
maxvit_rmlp_small_rw_256.untrained                       half      0.95   1000 apache-2.0          -      -
maxvit_rmlp_base_rw_224.sw_in12k_ft_in1k                 half      0.95   1000 apache-2.0     86.908 98.004
maxvit_rmlp_base_rw_224.sw_in12k                         half      0.95  11821 apache-2.0          -      -
maxvit_rmlp_base_rw_384.sw_in12k_ft_in1k                 half       1.0   1000 apache-2.0     87.810 98.366 squash
maxvit_tiny_tf_224.in1k                                  imagenet  0.95   1000 apache-2.0     83.426 96.584
maxvit_tiny_tf_384.in1k                                  half       1.0   1000 apache-2.0     85.106 97.382 squash
maxvit_tiny_tf_512.in1k                                  half       1.0   1000 apache-2.0     85.658 97.592 squash
maxvit_small_tf_224.in1k                                 imagenet  0.95   1000 apache-2.0     84.452 96.824
maxvit_small_tf_384.in1k                                 half       1.0   1000 apache-2.0     85.534 97.466 squash
maxvit_small_tf_512.in1k                                 half       1.0   1000 apache-2.0     86.102 97.758 squash
maxvit_base_tf_224.in1k                                  imagenet  0.95   1000 apache-2.0     84.884 97.002
maxvit_base_tf_224.in21k                                 half      0.95  21843 apache-2.0          -      -
maxvit_base_tf_384.in1k                                  half       1.0   1000 apache-2.0     86.290 97.802 squash
maxvit_base_tf_384.in21k_ft_in1k                         half       1.0   1000 apache-2.0     87.930 98.546 squash
maxvit_base_tf_512.in1k                                  half       1.0   1000 apache-2.0     86.598 97.924 squash
maxvit_base_tf_512.in21k_ft_in1k                         half       1.0   1000 apache-2.0     88.214 98.538 squash
maxvit_large_tf_224.in1k                                 imagenet  0.95   1000 apache-2.0     84.938 96.980
maxvit_large_tf_224.in21k                                half      0.95  21843 apache-2.0          -      -
maxvit_large_tf_384.in1k                                 half       1.0   1000 apache-2.0     86.242 97.684 squash
maxvit_large_tf_384.in21k_ft_in1k                        half       1.0   1000 apache-2.0     87.994 98.576 squash
maxvit_large_tf_512.in1k                                 half       1.0   1000 apache-2.0     86.534 97.884 squash
maxvit_large_tf_512.in21k_ft_in1k                        half       1.0   1000 apache-2.0     88.236 98.608 squash
maxvit_xlarge_tf_224.in21k                               half      0.95  21843 apache-2.0          -      -
maxvit_xlarge_tf_384.in21k_ft_in1k                       half       1.0   1000 apache-2.0     88.302 98.538 squash
maxvit_xlarge_tf_512.in21k_ft_in1k                       half       1.0   1000 apache-2.0     88.540 98.650 squash
"""
