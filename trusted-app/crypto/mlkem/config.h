/* How mlkem-native is built here: ML-KEM-768, from seeds, with SHA-3 by Nettle; memory that held secrets is wiped. */
#ifndef MLKEM_CONFIG_H
#define MLKEM_CONFIG_H

#define MLK_CONFIG_PARAMETER_SET 768
#define MLK_CONFIG_NAMESPACE_PREFIX mlkem768
#define MLK_CONFIG_NO_RANDOMIZED_API
#define MLK_CONFIG_SERIAL_FIPS202_ONLY
#define MLK_CONFIG_FIPS202_CUSTOM_HEADER "sha3.h"
#define MLK_CONFIG_FIPS202X4_CUSTOM_HEADER "sha3.h"

#endif
