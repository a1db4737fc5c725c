// How far a number is from the one it should be, in the kernels' own tests.
#ifndef EDGEBLT_TESTS_DIFFERENCE_H
#define EDGEBLT_TESTS_DIFFERENCE_H

#include <cmath>
#include <limits>

namespace edgeblt {

// 0 for the same number, for the same infinity and for two NaNs; infinity where only one of both is finite.
// std::max drops a NaN that it is given second, so differences that may be NaN would go unseen.
inline double difference(double expected, double actual) {
  if (expected == actual || (std::isnan(expected) && std::isnan(actual))) return 0;
  const double distance = std::fabs(expected - actual);
  return std::isnan(distance) ? std::numeric_limits<double>::infinity() : distance;
}

}  // namespace edgeblt

#endif
