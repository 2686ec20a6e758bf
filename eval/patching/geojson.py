"""Tissue contours as GeoJSON (RFC 7946), which QuPath imports as annotations."""

import json
from pathlib import Path
from typing import Any

from dinov2.utils.files import write_text
from eval.patching.segmentation import Contour, Tissue


def write_geojson(path: Path, tissue: Tissue) -> None:
    """Write one polygon a contour, holes as its inner rings, in level-0 px."""
    features = [
        {
            "type": "Feature",
            "geometry": {
                "type": "Polygon",
                "coordinates": [_ring(ring) for ring in (contour, *holes) if len(ring) > 2],
            },
            "properties": {
                "objectType": "annotation",
                "name": f"tissue {number}",
                "classification": {"name": "Tissue", "color": [0, 160, 0]},
                "tissue_id": number,
            },
        }
        for number, (contour, holes) in enumerate(zip(tissue.contours, tissue.holes, strict=True))
    ]
    write_text(path, json.dumps({"type": "FeatureCollection", "features": features}) + "\n")


def _ring(contour: Contour) -> list[Any]:
    points = contour.reshape(-1, 2).tolist()
    return [*points, points[0]]
