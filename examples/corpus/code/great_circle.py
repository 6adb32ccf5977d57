"""Distance and first bearing between two places on Earth, taken as a sphere."""

from __future__ import annotations

import math
from typing import NamedTuple

EARTH_RADIUS_KM = 6371.0088  # mean radius; the true figure is a slightly flattened ball


class Place(NamedTuple):
    """Latitude and longitude in degrees, north and east positive."""

    latitude: float
    longitude: float


def distance_km(a: Place, b: Place) -> float:
    """Return the length of the shortest path over the surface (haversine formula).

    The haversine form stays accurate for points that are close together, where
    the plain spherical law of cosines loses digits to rounding.
    """
    lat_a, lat_b = math.radians(a.latitude), math.radians(b.latitude)
    d_lat = lat_b - lat_a
    d_lon = math.radians(b.longitude - a.longitude)
    h = math.sin(d_lat / 2) ** 2 + math.cos(lat_a) * math.cos(lat_b) * math.sin(d_lon / 2) ** 2
    # Rounding can push h a hair above 1 for points on opposite sides of the globe.
    return 2 * EARTH_RADIUS_KM * math.asin(math.sqrt(min(1.0, h)))


def initial_bearing(a: Place, b: Place) -> float:
    """Return the compass course at the start of the path, 0 to 360 degrees from north."""
    lat_a, lat_b = math.radians(a.latitude), math.radians(b.latitude)
    d_lon = math.radians(b.longitude - a.longitude)
    east = math.sin(d_lon) * math.cos(lat_b)
    north = math.cos(lat_a) * math.sin(lat_b) - math.sin(lat_a) * math.cos(lat_b) * math.cos(d_lon)
    return math.degrees(math.atan2(east, north)) % 360


if __name__ == "__main__":
    lisbon = Place(38.7223, -9.1393)
    nairobi = Place(-1.2921, 36.8219)
    print(f"{distance_km(lisbon, nairobi):.0f} km, course {initial_bearing(lisbon, nairobi):.0f}")
    assert distance_km(lisbon, lisbon) == 0.0
    # One degree along a meridian is one 360th of the circumference.
    one_degree = distance_km(Place(10, 20), Place(11, 20))
    assert math.isclose(one_degree, 2 * math.pi * EARTH_RADIUS_KM / 360)
