// Division by a number that is fixed for a launch, as a multiplication and a shift.
// Source: T. Granlund, P. Montgomery, "Division by invariant integers using multiplication", 1994.
#pragma once

#include <bit>
#include <cstdint>

namespace dwconv {

class Divisor {
 public:
  Divisor() = default;

  // 1 <= value <= 2^62.
  explicit Divisor(std::int64_t value)
      : value_(value), shift_(std::bit_width(static_cast<std::uint64_t>(value) - 1)) {
    // ceil(2^(63 + shift) / value) fits 64 bits because 2^shift < 2 * value, and its error is too
    // small to be seen by any dividend below 2^63; likewise with 31 for 63 and 32 for 64.
    multiplier_ = static_cast<std::uint64_t>(ceil_of_power(63 + shift_));
    short_multiplier_ = static_cast<std::uint32_t>(shift_ < 32 ? ceil_of_power(31 + shift_) : 0);
  }

  __host__ __device__ std::int64_t value() const { return value_; }

  // For dividends that are not negative. The first two cases are most calls, and take a few
  // instructions where the last takes twenty: with it alone a 3x3 input gradient (N64 C128 256x512
  // float32) took 28.4 ms on an H100, and with all three 21.6.
  __device__ std::int64_t quotient(std::int64_t dividend) const {
    if (value_ == 1) return dividend;
    if (dividend < kShort && value_ < kShort) return short_quotient(static_cast<int>(dividend));
    const auto doubled = static_cast<std::uint64_t>(dividend) << 1;
    return static_cast<std::int64_t>(__umul64hi(multiplier_, doubled) >> shift_);
  }
  // The same where both are known to be below 2^31.
  __device__ int short_quotient(int dividend) const {
    return static_cast<int>(
        __umulhi(short_multiplier_, static_cast<std::uint32_t>(dividend) << 1) >> shift_);
  }
  // Of such numbers: leaves the quotient in `dividend` and returns the rest.
  __device__ int short_remainder(int& dividend) const {
    const int quotient = short_quotient(dividend);
    const int rest = dividend - quotient * static_cast<int>(value_);
    dividend = quotient;
    return rest;
  }
  // The same of 64 bits.
  __device__ std::int64_t remainder(std::int64_t& dividend) const {
    const std::int64_t quotient = this->quotient(dividend);
    const std::int64_t rest = dividend - quotient * value_;
    dividend = quotient;
    return rest;
  }
  __device__ std::int64_t ceil_quotient(std::int64_t dividend) const {
    return quotient(dividend + value_ - 1);
  }

 private:
  static constexpr std::int64_t kShort = std::int64_t{1} << 31;

  unsigned __int128 ceil_of_power(int exponent) const {
    return ((static_cast<unsigned __int128>(1) << exponent) + value_ - 1) / value_;
  }

  std::int64_t value_ = 1;
  std::uint64_t multiplier_ = std::uint64_t{1} << 63;
  std::uint32_t short_multiplier_ = std::uint32_t{1} << 31;
  int shift_ = 0;
};

// The same for numbers whose product with the divisor stays below 2^32: three instructions.
class SmallDivisor {
 public:
  SmallDivisor() = default;
  __host__ __device__ explicit SmallDivisor(int value)
      : value_(value), multiplier_(value > 1 ? 0xffffffffu / value + 1 : 0) {}

  __device__ int value() const { return value_; }
  __device__ int quotient(int dividend) const {
    return value_ == 1 ? dividend : static_cast<int>(__umulhi(dividend, multiplier_));
  }
  // Leaves the quotient in `dividend` and returns the rest.
  __device__ int remainder(int& dividend) const {
    const int whole = quotient(dividend);
    const int rest = dividend - whole * value_;
    dividend = whole;
    return rest;
  }

 private:
  int value_ = 1;
  std::uint32_t multiplier_ = 0;
};

}  // namespace dwconv
